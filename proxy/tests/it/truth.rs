//! Commands report what was done: in text, JSON, exit code and log.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use uh_protocol::request::{BackendRequest, SwitchRequest, WithdrawRequest};

use crate::harness::{Home, SampleApp, app, backend, cli, pair, soon, until};
use crate::wire::{Wire, get};

#[tokio::test]
async fn a_switch_that_is_undone_while_it_waits_reports_the_switch_and_what_became_of_it() {
    let (home, proxy, _blue, _green) = pair().await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=60000")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    for json in [false, true] {
        let generation = proxy.status().await.generation;
        let socket = home.socket();
        let waiting = tokio::spawn(async move {
            let mut args = vec!["switch", "green", "--wait-drain", "5s"];
            args.extend(json.then_some("--json"));
            cli(&socket, &args).await
        });
        until("it waits", async || {
            proxy.client.metrics().await.unwrap().contains("uh_proxy_drains_waiting 1\n").then_some(())
        })
        .await;
        proxy.switch("blue").await;
        let (exit, stdout, stderr) = soon("its end", waiting).await.unwrap();
        assert_eq!(exit, 1, "{stdout}{stderr}");
        for part in [
            "switched from blue to green",
            "but blue was made active again",
            &format!("blue is active now (generation {})", generation + 2),
        ] {
            assert!(stderr.contains(part), "{part:?} is missing in {stderr:?}");
        }
        if json {
            let said: Value = serde_json::from_str(&stdout).unwrap();
            assert_eq!((&said["exit"], &said["switch"]["changed"]), (&1.into(), &true.into()), "{said}");
            assert_eq!(said["problem"]["code"], "backend_active");
        } else {
            assert!(
                stdout.starts_with(&format!("app: blue → green (generation {})", generation + 1)),
                "{stdout}"
            );
        }
    }
}

#[tokio::test]
async fn a_reload_names_what_a_registration_overrides() {
    let (home, proxy, _blue, green) = pair().await;
    let order = BackendRequest {
        endpoints: vec![green.address.to_string()],
        version: Some("9".to_owned()),
        expect_generation: None,
        force: true,
    };
    proxy.client.set_backend(&app(), &backend("blue"), &order).await.unwrap();
    let moved = home.config().replacen("endpoints = [\"127", "endpoints = [\"127.0.0.1:7\", \"127", 1);
    home.write_config(&moved);
    let (exit, stdout, _) = cli(&home.socket(), &["reload"]).await;
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!((exit, lines[0]), (0, "reloaded: no changes (generation 2)"));
    assert_eq!(
        lines[1],
        "not applied, because a registration overrides it: services.app.backends.blue.endpoints (`uh-proxy backend unset` drops the registration)"
    );
    // Still reported as long as it is true.
    let done = proxy.client.reload().await.unwrap();
    assert_eq!(
        (done.changed.len(), done.overridden.as_slice(), done.persisted),
        (0, ["services.app.backends.blue.endpoints".to_owned()].as_slice(), true)
    );
    home.until_said("overridden=\"services.app.backends.blue.endpoints\"").await;
    assert_eq!(proxy.backend("blue").await.endpoints.len(), 1);
    let (exit, stdout, _) = cli(&home.socket(), &["backend", "unset", "blue", "--force"]).await;
    assert_eq!((exit, stdout.contains("127.0.0.1:7")), (0, true), "{stdout}");
    assert!(proxy.client.reload().await.unwrap().overridden.is_empty());
}

#[tokio::test]
async fn a_reload_that_is_not_on_disk_is_reported() {
    let (home, proxy, _blue, _green) = pair().await;
    fs::rename(home.path("state"), home.path("away")).unwrap();
    home.write_config(
        &home.config().replace("active = \"blue\"", "active = \"blue\"\ndrain_timeout = \"7s\""),
    );
    let (exit, stdout, _) = cli(&home.socket(), &["reload"]).await;
    assert_eq!(exit, 5, "{stdout}");
    assert!(stdout.contains("warning: applied, but not saved to disk"), "{stdout}");
    assert!(!proxy.status().await.persisted);
}

#[tokio::test]
async fn every_client_command_prints_json_when_it_is_refused() {
    let (home, mut proxy, _blue, _green) = pair().await;
    let socket = home.socket();
    proxy.client.withdraw(&app(), &backend("green"), &WithdrawRequest::default()).await.unwrap();
    home.write_config("[server]");
    for (args, exit, code) in [
        (vec!["switch", "green", "--json"], 3, "backend_withdrawn"),
        (vec!["switch", "red", "--json"], 1, "unknown_backend"),
        (vec!["status", "--service", "other", "--json"], 1, "failed"),
        (vec!["drain", "blue", "--json"], 3, "backend_active"),
        (vec!["backend", "set", "blue", "--endpoint", "127.0.0.1:9", "--json"], 3, "backend_active"),
        (vec!["backend", "set", "green", "--endpoint", "nowhere", "--json"], 1, "invalid_request"),
        (vec!["backend", "unset", "green", "--expect-generation", "99", "--json"], 3, "conflict"),
        (vec!["backend", "withdraw", "blue", "--json"], 3, "backend_active"),
        (vec!["maintenance", "on", "--retry-after", "0", "--json"], 1, "invalid_request"),
        (vec!["reload", "--json"], 3, "invalid_configuration"),
    ] {
        let (got, stdout, stderr) = cli(&socket, &args).await;
        assert_eq!(got, exit, "{args:?}: {stdout}{stderr}");
        let said: Value =
            serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {stdout:?}"));
        assert_eq!((&said["exit"], &said["problem"]["code"]), (&exit.into(), &code.into()), "{args:?}");
        assert!(stderr.contains(said["problem"]["detail"].as_str().unwrap()), "{args:?}: {stderr}");
    }
    proxy.kill();
    let (exit, stdout, _) = cli(&socket, &["status", "--json"]).await;
    let said: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((exit, &said["exit"], &said["problem"]["code"]), (4, &4.into(), &"no_proxy".into()));
}

#[tokio::test]
async fn no_permission_is_no_missing_proxy() {
    let (home, _proxy, _blue, _green) = pair().await;
    let program = home.path("uh-proxy");
    fs::copy(env!("CARGO_BIN_EXE_uh-proxy"), &program).unwrap();
    fs::set_permissions(home.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = if rustix::process::geteuid().is_root() {
        // Root ignores file modes, so the caller is another user.
        let mut command = tokio::process::Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
        command
    } else {
        // Only root can become another user, and no other user may write to this socket.
        fs::set_permissions(home.socket(), fs::Permissions::from_mode(0o400)).unwrap();
        tokio::process::Command::new(&program)
    };
    command.args(["status", "--json", "--admin-socket"]).arg(home.socket());
    // A program that was copied just now may still be open for writing in a process that another test starts.
    let output = until("it can be run", async || {
        Some(soon("a command", command.output()).await.unwrap())
            .filter(|output| output.status.code() != Some(126))
    })
    .await;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(3), "{stdout}{stderr}");
    assert!(stderr.contains("no permission to use the admin socket"), "{stderr}");
    let said: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(said["problem"]["code"], "no_permission");
}

/// An old deploy's expectation must not match because a restart reuses generations.
#[tokio::test]
async fn a_generation_that_never_reached_the_disk_is_not_handed_out_again_after_a_crash() {
    let (home, mut proxy, _blue, _green) = pair().await;
    let before = proxy.status().await.generation;
    let (state, away) = (home.path("state"), home.path("away"));
    fs::rename(&state, &away).unwrap();
    let lost = proxy.switch("green").await;
    assert!(lost.changed && !lost.persisted);
    proxy.kill();
    fs::rename(&away, &state).unwrap();
    let mut proxy = home.start().await;
    proxy.until_healthy().await;
    // An acknowledged generation continues, and so does a deploy in progress.
    assert_eq!((proxy.status().await.generation, proxy.service().await.active), (before, backend("blue")));
    let other = proxy.switch("green").await;
    assert_ne!(other.generation, lost.generation);
    let late =
        SwitchRequest { expect_generation: Some(lost.generation), ..SwitchRequest::to(backend("blue")) };
    assert!(proxy.client.switch(&app(), &late).await.is_err(), "an expectation of before the crash held");
    // Consecutive again.
    assert_eq!(proxy.switch("blue").await.generation, other.generation + 1);
    proxy.kill();
    // The same if the very first state couldn't be written.
    fs::remove_dir_all(&state).unwrap();
    fs::create_dir(&state).unwrap();
    fs::create_dir_all(home.path("state/.deployment-state.json.tmp/full")).unwrap();
    let proxy = home.start().await;
    assert!(proxy.switch_by_force("green").await.generation > 1_000_000);
}

#[tokio::test]
async fn no_number_of_changes_is_handed_out_twice_however_often_it_crashes() {
    let (home, mut proxy, _blue, _green) = pair().await;
    let (state, away) = (home.path("state"), home.path("away"));
    let mut handed_out = std::collections::BTreeSet::new();
    for crash in 1..=3 {
        // Writable at start, so that it knows what was active; then every write fails.
        fs::rename(&state, &away).unwrap();
        let lost = proxy.switch_by_force("green").await;
        assert!(lost.changed && !lost.persisted);
        assert!(
            handed_out.insert(lost.generation),
            "{} was handed out before crash {crash}",
            lost.generation
        );
        proxy.kill();
        fs::rename(&away, &state).unwrap();
        // systemd waits for this long.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        proxy = home.start().await;
    }
}

#[tokio::test]
async fn a_restart_goes_on_from_the_numbers_that_it_has_reserved() {
    let (home, mut proxy, _blue, _green) = pair().await;
    let mut last = proxy.switch_by_force("green").await.generation;
    assert_eq!(last, 1);
    for restart in 1..=3 {
        proxy.kill();
        proxy = home.start().await;
        assert_eq!(proxy.status().await.generation, last);
        let switched = proxy.switch_by_force(if restart % 2 == 0 { "green" } else { "blue" }).await;
        assert!(switched.persisted && switched.generation > last, "{switched:?}");
        last = switched.generation;
    }
    assert!(last < 10_000, "{last} looks like a time");
    // An older version writes no reserve: then it isn't known how far it went.
    proxy.kill();
    let text = fs::read_to_string(home.state_file()).unwrap();
    let mut state: Value = serde_json::from_str(&text).unwrap();
    for field in ["generationReserve", "checksum"] {
        assert!(state.as_object_mut().unwrap().remove(field).is_some(), "{text}");
    }
    fs::write(home.state_file(), state.to_string()).unwrap();
    let proxy = home.start().await;
    assert_eq!(proxy.status().await.generation, last);
    assert!(proxy.switch_by_force("green").await.generation > 1_000_000_000_000);
}

/// After the state file is moved away, the configuration's backends are active, and old expectations must not match by
/// chance.
#[tokio::test]
async fn a_state_file_that_was_moved_away_makes_no_number_come_again() {
    let (home, mut proxy, _blue, _green) = pair().await;
    let old = proxy.switch_by_force("green").await;
    assert!(old.persisted && old.generation < 1000, "a first run counts from the start");
    proxy.kill();
    for entry in fs::read_dir(home.path("state")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "lock") {
            fs::remove_file(path).unwrap();
        }
    }
    let proxy = home.start().await;
    assert!(proxy.switch_by_force("green").await.generation > old.generation + 1000);
}

/// A field of a log line that is an error goes through [`uh_system::plain`].
#[test]
fn no_log_line_shows_an_error_as_it_is() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![source];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let bare = ["%error,", "%error ", "%error)", "?error,", "%e,"];
            let found = bare.iter().find(|bare| text.contains(**bare));
            assert_eq!(found, None, "{}: write error = %plain(&error)", path.display());
        }
    }
}

#[tokio::test]
async fn no_line_of_the_log_has_debug_text() {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    for format in ["text", "json"] {
        let home = Home::new(format!("localhost:{}", blue.address.port()), green.address)
            .server(&format!("log = {format:?}"));
        let mut proxy = home.start().await;
        proxy.until_healthy().await;
        let socket = home.socket();
        let endpoint = green.address.to_string();
        for args in [
            vec!["switch", "green"],
            vec!["switch", "green", "--expect-active", "blue"],
            vec!["switch", "red"],
            vec!["drain", "blue"],
            vec!["drain", "green"],
            vec!["maintenance", "on", "--message", "Back at noon."],
            vec!["maintenance", "off"],
            vec!["maintenance", "off", "--service", "other"],
            vec!["backend", "set", "blue", "--endpoint", &endpoint, "--version", "7"],
            vec!["backend", "set", "green", "--endpoint", "127.0.0.1:9"],
            vec!["backend", "withdraw", "blue"],
            vec!["switch", "blue", "--force"],
            vec!["backend", "unset", "blue"],
            vec![
                "backend",
                "set",
                "blue",
                "--endpoint",
                "127.0.0.1:9",
                "--endpoint",
                "no-such-host.invalid:80",
            ],
            vec!["switch", "blue"],
            vec!["switch", "blue", "--force"],
            vec!["reload"],
        ] {
            cli(&socket, &args).await;
        }
        home.write_config("[server]\ncolour = 1");
        cli(&socket, &["reload"]).await;
        home.write_config(&home.config().replace("threads = 2", "threads = 3\nshutdown_timeout = \"7s\""));
        proxy.signal(Signal::HUP);
        until("it is reloaded", async || home.messages().contains("server.threads").then_some(())).await;
        until("the name is looked up", async || {
            home.messages().contains("cannot resolve the name").then_some(())
        })
        .await;
        proxy.signal(Signal::TERM);
        proxy.ended().await;
        let odd = ["Some(", "None", "Ok(", "Err(", "Unhealthy", "Healthy", "Status {"];
        for line in home.messages().lines() {
            let found = odd.iter().find(|odd| line.contains(**odd));
            assert!(found.is_none(), "{:?} in {line}", found.unwrap());
        }
        assert!(home.messages().lines().count() > 20, "hardly anything was logged");
    }
}

/// Finds `field = ?value` in log statements, which would write Rust's debug notation into the log.
#[test]
fn no_log_line_is_written_with_debug_formatting() {
    fn sources(directory: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut files = Vec::new();
    sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.len() > 50);
    let mut odd = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for (at, _) in text.match_indices("tracing::") {
            let Some(end) = text[at..].find(");") else { continue };
            let call = &text[at..at + end];
            let is_log =
                ["info!", "warn!", "error!", "debug!"].iter().any(|kind| call[9..].starts_with(kind));
            let debug =
                call.contains("= ?") || call.contains(", ?") || call.contains("(?") || call.contains(":?}");
            if is_log && debug {
                odd.push(format!("{}: {}", file.display(), call.replace('\n', " ")));
            }
        }
    }
    assert!(odd.is_empty(), "{}", odd.join("\n"));
}
