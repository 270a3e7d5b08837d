//! What a watch counts as a failure of the new version, and what it doesn't: truncated answers, requests that hang, and
//! errors that the old version had as well.

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use crate::harness::{Ran, Stage, get, until};
use crate::watching::{Traffic, failing, turns_bad};

const QUICK: &str = "[monitor]\ninterval = \"200ms\"";

/// A healthy app that truncates every other answer, with status 200.
const CUTS_ITS_ANSWERS: &str = "import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        healthy = self.path == '/api/health'
        self.send_response(200)
        self.send_header('Content-Length', '2' if healthy else '1000')
        self.end_headers()
        self.wfile.write(b'ok')
http.server.ThreadingHTTPServer.request_queue_size = 1024
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()
";

/// A deploy of 1.0.1 with a watch that rolls back.
fn watched_deploy(stage: &Stage, watch: &str) -> Child {
    let mut command =
        stage.command(&["blue-green", "--version", "1.0.1", "--watch", watch, "--auto-rollback"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn until_deployed(stage: &Stage) {
    until("it is deployed", || stage.history().iter().any(|line| line["version"] == "1.0.1").then_some(()));
}

#[test]
fn truncated_answers_are_errors_despite_status_200() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let _traffic = Traffic::start(stage.address, 50, "/");
    let script = stage.path("app.py");
    fs::write(&script, CUTS_ITS_ANSWERS).unwrap();
    stage.configure(
        "uh-deploy.toml",
        &format!("[runtime.process]\ncommand = [\"python3\", {script:?}]\n{QUICK}"),
    );
    let ran = Ran::of(watched_deploy(&stage, "20s").wait_with_output().unwrap());
    assert_eq!(ran.code, Some(3), "{}", ran.text);
    ran.says("broken off (cut_short)").says("✅ Rollback complete");
    assert_eq!(stage.served(), "blue 1.0.0");
}

/// Sends requests from several clients at once and waits for none of them.
fn ask_and_forget(address: SocketAddr, clients: usize, path: &'static str) {
    for _ in 0..clients {
        std::thread::spawn(move || drop(get(address, path)));
    }
}

#[test]
fn hanging_requests_are_errors_while_they_wait() {
    let mut stage = Stage::new();
    let front_door = stage.path("uh-proxy.toml");
    let text = fs::read_to_string(&front_door).unwrap() + "[services.app.timeouts]\noverdue = \"300ms\"\n";
    fs::write(&front_door, text).unwrap();
    stage.kill_front_door();
    stage.start_front_door();
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", QUICK);
    let deploy = watched_deploy(&stage, "8s");
    until_deployed(&stage);
    ask_and_forget(stage.address, 12, "/slow?ms=60000");
    let ran = Ran::of(deploy.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(3), "{}", ran.text);
    ran.says("overdue").says("✅ Rollback complete");
    assert_eq!(stage.served(), "blue 1.0.0");
}

/// Every measurement sees more errors than the limit allows, but fewer than the old version had.
#[test]
fn a_version_that_fails_less_than_the_old_one_stays() {
    let stage = Stage::new();
    let looks = "[monitor]\ninterval = \"500ms\"\nmin_requests = 5";
    stage.configure("uh-deploy.toml", &failing(6, looks));
    stage.deploy("1.0.0");
    let traffic = Traffic::start(stage.address, 100, "/");
    traffic.wait_for(500);
    stage.configure("uh-deploy.toml", &failing(4, looks));
    let ran = Ran::of(watched_deploy(&stage, "4s").wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    assert_eq!(stage.service().active.to_string(), "green");
}

/// The counters start from zero, and an earlier version of the same backend had more errors.
#[test]
fn errors_after_a_restart_are_not_hidden_by_earlier_errors() {
    let mut stage = Stage::new();
    stage.deploy("0.9.0");
    // 0.9.1 fails everything as green. 1.0.1 is green again.
    stage.configure("uh-deploy.toml", &failing(100, ""));
    stage.deploy("0.9.1");
    (0..150).for_each(|_| drop(get(stage.address, "/")));
    stage.configure("uh-deploy.toml", "");
    stage.deploy("1.0.0");
    let bad = turns_bad(&stage, "[monitor]\ninterval = \"8s\"");
    let deploy = watched_deploy(&stage, "20s");
    until_deployed(&stage);
    stage.kill_front_door();
    stage.start_front_door();
    fs::write(&bad, "").unwrap();
    (0..120).for_each(|_| drop(get(stage.address, "/")));
    fs::remove_file(bad).unwrap();
    (0..60).for_each(|_| drop(get(stage.address, "/")));
    let ran = Ran::of(deploy.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(3), "{}", ran.text);
    ran.says("uh-proxy was restarted").says("✅ Rollback complete");
    assert_eq!(stage.served(), "blue 1.0.0");
}
