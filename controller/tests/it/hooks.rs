//! Hooks that leave a child behind, and hooks that print an endless line. And who receives a webhook.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{REQUEST_TIMEOUT, Stage};

/// Receives one event of a webhook.
pub(crate) struct Webhook {
    pub(crate) url: String,
    event: Receiver<(String, Value)>,
}

impl Webhook {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/deploys", listener.local_addr().unwrap());
        let (sender, event) = channel();
        // If nobody calls, it is left behind, and ends with the test's process.
        std::thread::spawn(move || sender.send(receive(listener.accept().unwrap().0)));
        Self { url, event }
    }

    /// The request line and the event. It has been sent, or is about to be.
    #[track_caller]
    pub(crate) fn event(&self) -> (String, Value) {
        self.event.recv_timeout(REQUEST_TIMEOUT).expect("no event was sent to the webhook")
    }
}

fn receive(stream: TcpStream) -> (String, Value) {
    stream.set_read_timeout(Some(REQUEST_TIMEOUT)).unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0, "{head:?}");
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_ascii_lowercase());
    }
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    reader.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    (head.swap_remove(0), serde_json::from_slice(&body).unwrap())
}

/// A background process, such as a build daemon, that keeps the hook's output open.
#[test]
fn a_hook_that_exits_with_0_and_leaves_a_child_with_its_output_has_succeeded() {
    let stage = Stage::new();
    let left = stage.path("left");
    let script = format!("echo fine; sleep 100 & echo $! > {left:?}; exit 0");
    let extra = format!("[hooks]\npre_deploy = [\"sh\", \"-c\", {script:?}]\ntimeout = \"60s\"");
    stage.configure("uh-deploy.toml", &extra);
    let start = Instant::now();
    stage.deploy("1.0.0").says("fine");
    assert!(
        start.elapsed() < Duration::from_secs(50),
        "it does not wait for the child: {:?}",
        start.elapsed()
    );
    let pid: i32 = fs::read_to_string(left).unwrap().trim().parse().unwrap();
    let child = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(child, rustix::process::Signal::KILL).expect("the child was left alone");
}

#[test]
fn a_hook_that_vetoes_and_leaves_a_child_with_its_output_is_shown_with_its_last_lines() {
    let stage = Stage::new();
    let script = "echo not today; sleep 100 & exit 3";
    let extra = format!("[hooks]\npre_deploy = [\"sh\", \"-c\", {script:?}]\ntimeout = \"60s\"");
    stage.configure("uh-deploy.toml", &extra);
    let ran = stage.expect(1, &["blue-green", "--version", "1.0.0"]);
    ran.says("exit status: 3").says("not today");
}

/// 200 MB in one line, with 150 MB of address space: the whole line wouldn't fit.
#[test]
fn a_hook_that_prints_an_endless_line_takes_no_more_memory_than_the_line_limit() {
    let stage = Stage::new();
    let extra = "[hooks]\npre_deploy = [\"head\", \"-c\", \"200000000\", \"/dev/zero\"]\ntimeout = \"60s\"";
    stage.configure("uh-deploy.toml", extra);
    let mut command = stage.command(&["blue-green", "--version", "1.0.0"]);
    let file = fs::File::create(stage.path("out")).unwrap();
    let mut child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    let limit = rustix::process::Rlimit { current: Some(150 << 20), maximum: Some(150 << 20) };
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::prlimit(Some(pid), rustix::process::Resource::As, limit).unwrap();
    let code = child.wait().unwrap().code();
    let said = fs::read_to_string(stage.path("out")).unwrap();
    assert_eq!(code, Some(0), "{}", &said[said.len().saturating_sub(2000)..]);
    assert!(said.contains("more bytes)"), "it says how much it left out");
}
