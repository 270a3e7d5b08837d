//! The real program: how it starts and exits.

use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Channel};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use crate::support::{connect, empty, next_chunk, request, within};
use crate::websocket::WebSocket;

struct Process {
    child: Child,
    address: SocketAddr,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
}

fn command(variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uh-sample-app"));
    command.env_clear().env("PORT", "0").env("DEPLOYMENT_ENV", "green").envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().unwrap() as i32).unwrap(), signal).unwrap();
}

async fn output(mut command: Command) -> Output {
    within("the process to leave", command.output()).await.unwrap()
}

/// Reads until the received bytes end with `end`.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let byte = within(end, stream.read_u8()).await.unwrap();
        text.push(char::from(byte));
    }
    text
}

impl Process {
    async fn start(variables: &[(&str, &str)]) -> Self {
        let mut child = command(variables).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = within("the address", stdout.next_line()).await.unwrap().unwrap();
        let address = line.strip_prefix("listening on ").unwrap().parse().unwrap();
        Self { child, address, stdout, stderr }
    }

    /// Sends a signal, and waits until the drain has started.
    async fn drain(&mut self) {
        signal(&self.child, Signal::TERM);
        self.says("draining").await;
    }

    async fn says(&mut self, words: &str) {
        while let Some(line) = within("a message", self.stderr.next_line()).await.unwrap() {
            if line.contains(words) {
                return;
            }
        }
        panic!("it exited without logging {words:?}");
    }

    /// Waits for the exit and returns the code. Stdout may only contain the address.
    async fn exit_code(mut self) -> Option<i32> {
        let status = within("the process to leave", self.child.wait()).await.unwrap();
        assert_eq!(self.stdout.next_line().await.unwrap(), None);
        status.code()
    }
}

#[tokio::test]
async fn an_idle_app_exits_immediately_on_either_signal() {
    for signal_sent in [Signal::TERM, Signal::INT] {
        let process = Process::start(&[]).await;
        assert!(process.address.ip().is_loopback());
        signal(&process.child, signal_sent);
        assert_eq!(process.exit_code().await, Some(0));
    }
}

#[tokio::test]
async fn a_slow_request_in_flight_is_answered_and_its_connection_closed() {
    let mut process = Process::start(&[]).await;
    let mut stream = TcpStream::connect(process.address).await.unwrap();
    // The two requests arrive together, so once the first is answered, the second is in flight.
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /slow?ms=400 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let first = read_until(&mut stream, "green 0.0.0\n").await;
    assert!(!first.contains("connection: close"), "{first}");
    process.drain().await;
    let mut second = String::new();
    within("the slow answer", stream.read_to_string(&mut second)).await.unwrap();
    assert!(second.starts_with("HTTP/1.1 200 ") && second.ends_with("\r\n\r\ngreen 0.0.0\n"), "{second}");
    assert!(second.contains("connection: close\r\n"), "{second}");
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn an_upload_in_flight_is_read_to_its_end() {
    let mut process = Process::start(&[]).await;
    let mut stream = TcpStream::connect(process.address).await.unwrap();
    let head = "POST /upload HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n").await;
    process.drain().await;
    stream.write_all(b"abc").await.unwrap();
    let answer = read_until(&mut stream, "}").await;
    assert!(answer.contains(r#""bytes":3"#), "{answer}");
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_drain_closes_the_listener_and_idle_connections_but_not_busy_ones() {
    let mut process = Process::start(&[]).await;
    let mut idle = connect(process.address).await;
    let answer = within("an answer", idle.send_request(request("GET", "/", empty()))).await.unwrap();
    within("its body", answer.collect()).await.unwrap();
    let mut busy = connect(process.address).await;
    let (mut sender, body) = Channel::<_, std::io::Error>::new(1);
    let answer = busy.send_request(request("POST", "/echo", body.boxed_unsync()));
    let mut echoed = within("the echo to begin", answer).await.unwrap().into_body();

    process.drain().await;
    assert!(TcpStream::connect(process.address).await.is_err(), "the listener is closed");
    within("the idle connection to close", async {
        while !idle.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    within("a chunk to be sent", sender.send_data("still here".into())).await.unwrap();
    assert_eq!(next_chunk(&mut echoed).await.unwrap(), "still here");
    drop(sender);
    assert_eq!(next_chunk(&mut echoed).await, None);
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_tunnel_continues_during_the_drain() {
    let mut process = Process::start(&[]).await;
    let mut socket = WebSocket::open(process.address).await;
    process.drain().await;
    socket.echoes("still here").await;
    drop(socket);
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn requests_that_outlive_the_deadline_are_cut_and_counted() {
    let mut process = Process::start(&[("DRAIN_TIMEOUT_MS", "200")]).await;
    let socket = WebSocket::open(process.address).await;
    let mut stream = connect(process.address).await;
    let events = stream.send_request(request("GET", "/stream?events=0", empty()));
    let mut events = within("the stream", events).await.unwrap().into_body();
    assert!(next_chunk(&mut events).await.is_some());
    let drain_started_at = Instant::now();
    process.drain().await;
    process.says("exiting, 2 requests in flight were cut").await;
    assert!(drain_started_at.elapsed() >= Duration::from_millis(200));
    assert_eq!(process.exit_code().await, Some(1));
    drop(socket);
}

#[tokio::test]
async fn a_second_signal_ends_the_drain_immediately() {
    let mut process = Process::start(&[("DRAIN_TIMEOUT_MS", "3600000")]).await;
    let socket = WebSocket::open(process.address).await;
    process.drain().await;
    signal(&process.child, Signal::INT);
    process.says("SIGINT while draining").await;
    assert_eq!(process.exit_code().await, Some(1));
    drop(socket);
}

#[tokio::test]
async fn an_invalid_setting_is_named_and_exits_with_2() {
    let output = output(command(&[("DRAIN_TIMEOUT_MS", "soon")])).await;
    assert_eq!((output.status.code(), output.stdout), (Some(2), Vec::new()));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains(r#"DRAIN_TIMEOUT_MS is "soon": expected a number"#), "{message}");
}

#[tokio::test]
async fn an_address_in_use_exits_with_1() {
    let first = Process::start(&[]).await;
    let output = output(command(&[("PORT", &first.address.port().to_string())])).await;
    assert_eq!((output.status.code(), output.stdout), (Some(1), Vec::new()));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains(&format!("can't listen on {}: ", first.address)), "{message}");
}

#[tokio::test]
async fn nothing_listens_before_the_start_delay_is_over() {
    let spawned_at = Instant::now();
    let process = Process::start(&[("START_DELAY_MS", "300")]).await;
    assert!(spawned_at.elapsed() >= Duration::from_millis(300));
    drop(process);
}

#[tokio::test]
async fn a_signal_during_the_start_delay_exits_immediately() {
    let mut child = command(&[("START_DELAY_MS", "600000")]).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = within("a message", stderr.next_line()).await.unwrap().unwrap();
    assert!(line.contains("listening in 600s"), "{line}");
    signal(&child, Signal::TERM);
    assert_eq!(within("the process to leave", child.wait()).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_host_name_binds_to_all_addresses() {
    let process = Process::start(&[("HOSTNAME", "4f2a9c")]).await;
    assert!(process.address.ip().is_unspecified());
}
