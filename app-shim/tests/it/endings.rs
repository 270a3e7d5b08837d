//! Every way the shim can end, and its exit code.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::shim::{Shim, TALKER, command, sample_app, within};

/// An address without an app. A Unix socket, so that nothing else can listen there.
const NOWHERE: &str = "unix:/nonexistent/app.sock";

#[tokio::test]
async fn an_app_that_exits_ends_the_shim_with_its_code() {
    for (script, code) in [("exit 0", 0), ("exit 1", 1), ("exit 2", 2), ("exit 255", 255)] {
        let mut shim = Shim::start(NOWHERE, &[], script);
        assert_eq!(shim.code().await, Some(code), "{script}");
        shim.log.wait_for(&format!("App exited with code {code}")).await;
    }
}

#[tokio::test]
async fn an_app_killed_by_a_signal_gives_128_plus_the_signal() {
    for (signal, code) in [("KILL", 137), ("SEGV", 139), ("TERM", 143)] {
        let mut shim = Shim::start(NOWHERE, &[], &format!("kill -{signal} $$"));
        assert_eq!(shim.code().await, Some(code), "{signal}");
        shim.log.wait_for(&format!("App was killed by signal {} (exit code {code})", code - 128)).await;
    }
}

#[tokio::test]
async fn a_command_that_can_not_be_executed_gives_126_and_a_missing_one_127() {
    for (program, code) in
        [("/etc/passwd", 126), ("/", 126), ("no-such-program", 127), ("/no/such/program", 127)]
    {
        let mut shim = Shim::spawn(command(&["--listen", "127.0.0.1:0"], &[program]));
        assert_eq!(shim.code().await, Some(code), "{program}");
        shim.log.wait_for(&format!("app-shim: can't start \"{program}\": ")).await;
    }
}

#[tokio::test]
async fn invalid_options_give_2_and_a_port_in_use_gives_125() {
    let mut wrong = Shim::spawn(command(&["--drain-timeout", "soon"], &["true"]));
    assert_eq!(wrong.code().await, Some(2));
    wrong.log.wait_for("isn't a duration").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let holder = std::net::TcpListener::bind(taken).unwrap();
    let mut shim = Shim::spawn(command(&["--listen", &taken.to_string()], &["sh", "-c", "echo started"]));
    assert_eq!(shim.code().await, Some(125));
    shim.log.wait_for(&format!("can't listen on {taken}: ")).await;
    assert!(shim.output.to_end().await.is_empty(), "the app must not be started");
    drop(holder);
}

#[tokio::test]
async fn an_app_that_never_accepts_is_stopped_after_the_start_timeout() {
    let mut shim = Shim::start(NOWHERE, &["--start-timeout", "200ms"], TALKER);
    assert_eq!(shim.code().await, Some(125));
    shim.log.wait_for("App doesn't accept connections on unix:/nonexistent/app.sock after 200ms").await;
    assert!(shim.output.to_end().await.contains(&"got TERM".to_owned()));
}

#[tokio::test]
async fn sigterm_and_sigint_end_an_idle_shim_with_0() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let (mut shim, _) = Shim::serving(&[]).await;
        shim.signal(signal);
        assert_eq!(shim.code().await, Some(0));
        shim.log.wait_for(&format!("Received {name}")).await;
        assert!(shim.output.to_end().await.contains(&"got TERM".to_owned()), "the app always gets SIGTERM");
    }
}

#[tokio::test]
async fn sigterm_during_the_start_ends_with_0_immediately() {
    let mut shim = Shim::start(NOWHERE, &[], TALKER);
    shim.output.wait_for("ready").await;
    shim.signal(Signal::TERM);
    assert_eq!(shim.code().await, Some(0));
    for line in [
        "Received SIGTERM",
        "Stopping new",
        "Draining 0 active",
        "All connections drained",
        "exiting gracefully",
    ] {
        shim.log.wait_for(line).await;
    }
}

#[tokio::test]
async fn an_app_that_ignores_sigterm_is_killed_with_137() {
    let app = sample_app().await.to_string();
    let mut shim = Shim::start(
        &app,
        &["--kill-after", "300ms"],
        "trap '' TERM; echo ready; while kill -0 $PPID 2>&-; do sleep 0.01; done",
    );
    shim.output.wait_for("ready").await;
    let told_at = Instant::now();
    shim.signal(Signal::TERM);
    assert_eq!(shim.code().await, Some(137));
    assert!(told_at.elapsed() >= Duration::from_millis(300));
    shim.log.wait_for("App is still running 300ms after SIGTERM: killing it (exit code 137)").await;
}

#[tokio::test]
async fn a_further_sigterm_does_not_wait_for_a_stubborn_app() {
    let app = sample_app().await.to_string();
    let mut shim = Shim::start(
        &app,
        &["--kill-after", "1h"],
        "trap '' TERM; echo ready; while kill -0 $PPID 2>&-; do sleep 0.01; done",
    );
    shim.output.wait_for("ready").await;
    shim.signal(Signal::TERM);
    shim.log.wait_for("All connections drained").await;
    shim.signal(Signal::TERM);
    assert_eq!(shim.code().await, Some(137));
}

#[tokio::test]
async fn a_check_is_0_while_the_shim_is_healthy_and_1_with_the_reason_when_it_is_not() {
    let check = async |address: &str| {
        let mut check = tokio::process::Command::new(env!("CARGO_BIN_EXE_app-shim"));
        check.args(["--check", "--listen", address]);
        within("a check", check.output()).await.unwrap()
    };
    let (_healthy, address) = Shim::serving(&[]).await;
    assert_eq!(check(&address.to_string()).await.status.code(), Some(0));

    let starting = Shim::start(NOWHERE, &[], TALKER);
    let said = check(&starting.address().await.to_string()).await;
    assert_eq!(said.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&said.stderr).contains("\"status\":\"starting\""), "{said:?}");

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let said = check(&free.to_string()).await;
    assert_eq!(said.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&said.stderr).contains("doesn't answer"), "{said:?}");
}

#[tokio::test]
async fn it_refuses_to_start_if_another_process_already_listens() {
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = stranger.local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.sock");
    let _unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let localhost = format!("localhost:{}", address.port());
    for app in [address.to_string(), localhost, format!("unix:{}", path.display())] {
        let mut command = command(&["--listen", "127.0.0.1:0", "--app", &app], &["sh", "-c", "echo started"]);
        let mut shim = Shim::spawn({
            command.env_remove("APP_SHIM_ALLOW_LISTENING");
            command
        });
        assert_eq!(shim.code().await, Some(125), "{app}");
        let refused = format!("(pid {}) already listens there; stop it", std::process::id());
        shim.log.wait_for(&refused).await;
        assert!(shim.output.to_end().await.is_empty(), "the app must not be started");
    }
}

#[tokio::test]
async fn the_app_dies_with_its_shim() {
    // An app that ignores SIGTERM and the death of its parent.
    let shim = Shim::start(NOWHERE, &[], "trap '' TERM; echo pid $$; while :; do sleep 0.05; done");
    let line = shim.output.wait_for("pid ").await;
    let app: i32 = line.strip_prefix("pid ").unwrap().parse().unwrap();
    shim.signal(Signal::KILL);
    let gone = async {
        let stat = || std::fs::read_to_string(format!("/proc/{app}/stat"));
        while stat().is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the app to die", gone).await;
}

#[tokio::test]
async fn an_app_that_listens_on_ipv6_localhost_is_found() {
    let Ok(listener) = tokio::net::TcpListener::bind("[::1]:0").await else {
        return; // no IPv6 here
    };
    let app = format!("localhost:{}", listener.local_addr().unwrap().port());
    let shim = Shim::start(&app, &[], TALKER);
    shim.log.wait_for(&format!("App accepts connections on {app}")).await;
}

#[tokio::test]
async fn an_app_that_does_not_accept_is_logged_after_some_seconds_with_the_address() {
    let shim = Shim::start(NOWHERE, &[], TALKER);
    shim.log.wait_for("App doesn't accept connections on unix:/nonexistent/app.sock yet: No such file").await;
}
