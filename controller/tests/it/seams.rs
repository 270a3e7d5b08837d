//! The tool's environment: readers of its output, owners of its files, logs it follows.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::sync::mpsc;

use crate::harness::{SOON, Stage, until};

/// A pipe holds 64 KiB; the build prints far more.
#[test]
fn a_deploy_whose_output_is_not_read_completes() {
    let stage = Stage::new();
    let build =
        "i=0; while [ $i -lt 5000 ]; do echo a line of a build that says a lot, number $i; i=$((i+1)); done";
    stage.configure("uh-deploy.toml", &format!("[runtime.process]\nbuild = [\"sh\", \"-c\", {build:?}]"));
    let mut child = stage
        .command(&["blue-green", "--version", "1.0.0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = until("the deploy has ended", || child.try_wait().unwrap());
    assert_eq!((status.code(), stage.served()), (Some(0), "blue 1.0.0".to_owned()));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("standard output wasn't read") && said.contains("lines were dropped"), "{said}");
}

#[test]
fn a_state_directory_writable_by_others_is_refused_and_nothing_in_it_is_run() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let state = stage.path("deploy-state");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).unwrap();
    for command in
        [&["rollback"][..], &["blue-green", "--version", "1.0.2"], &["retire", "--now"], &["history"]]
    {
        stage
            .expect(1, command)
            .says(&format!("chmod -R go-w {}", state.display()))
            .says("nothing was changed");
    }
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&state, Some(65534), None).unwrap();
        stage.expect(1, &["rollback"]).says(&format!("chown -R 0 {}", state.display()));
        std::os::unix::fs::chown(&state, Some(0), None).unwrap();
        let record = state.join("records/blue.json");
        std::os::unix::fs::chown(&record, Some(65534), None).unwrap();
        stage.expect(1, &["rollback"]).says(&format!("chown -R 0 {}", record.display()));
        std::os::unix::fs::chown(&record, Some(0), None).unwrap();
    }
    assert_eq!(stage.served(), "green 1.0.1");
    stage.expect(0, &["rollback"]);
}

#[test]
fn a_followed_log_continues_with_the_version_that_takes_over() {
    let stage = Stage::new();
    let app = crate::harness::program("uh-sample-app");
    let script = format!("echo hello from $DEPLOYMENT_ENV $APP_VERSION; exec {}", app.display());
    stage.configure("uh-deploy.toml", &format!("[runtime.process]\ncommand = [\"sh\", \"-c\", {script:?}]"));
    stage.deploy("1.0.0");
    let mut follow = stage.command(&["logs", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let (sender, received) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let wait_for = |text: &str| {
        let deadline = std::time::Instant::now() + SOON;
        loop {
            let line = received.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now()));
            if line.unwrap_or_else(|_| panic!("no line with {text:?}")).contains(text) {
                return;
            }
        }
    };
    wait_for("hello from blue 1.0.0");
    stage.deploy("1.0.1");
    wait_for("took over from app.blue");
    wait_for("hello from green 1.0.1");
    follow.kill().unwrap();
    follow.wait().unwrap();
}

#[test]
fn a_probe_sends_the_configured_header_fields() {
    let stage = Stage::new();
    // The app only answers well to requests as from a TLS-terminating proxy.
    let script = stage.path("app.py");
    fs::write(
        &script,
        "import http.server, os\n\
         class H(http.server.BaseHTTPRequestHandler):\n\
         \x20   def do_GET(self):\n\
         \x20       ok = self.headers.get('X-Forwarded-Proto') == 'https' or 'uh-deploy' not in self.headers.get('User-Agent', '')\n\
         \x20       self.send_response(200 if ok else 301)\n\
         \x20       self.send_header('Content-Length', '0')\n\
         \x20       self.end_headers()\n\
         http.server.ThreadingHTTPServer.request_queue_size = 1024\n\
         http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()\n",
    )
    .unwrap();
    let app = format!("[runtime.process]\ncommand = [\"python3\", {script:?}]\n[health]\nwithin = \"10s\"");
    stage.configure("uh-deploy.toml", &app.replace("10s", "2s"));
    stage.expect(1, &["blue-green", "--version", "1.0.0"]).says("status 301");
    stage.configure("uh-deploy.toml", &format!("{app}\nheaders = {{ X-Forwarded-Proto = \"https\" }}"));
    stage.deploy("1.0.0");
}

#[test]
fn the_history_contains_the_name_given_by_the_option() {
    let stage = Stage::new();
    stage.expect(0, &["blue-green", "--version", "1.0.0", "--by", "Ann Smith"]);
    stage.expect(0, &["history"]).says("Ann Smith@");
    let ran = stage
        .command(&["blue-green", "--version", "1.0.1"])
        .env_remove("SUDO_USER")
        .env("GITHUB_ACTOR", "octocat")
        .output()
        .unwrap();
    assert!(ran.status.success());
    stage.expect(0, &["history"]).says("octocat (GitHub Actions)@");
}
