//! Upgrades that fail: the old uh-proxy goes on, and the command says why.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::harness::{Home, Proxy, cli, pair, until};
use crate::wire::Wire;

#[cfg(feature = "fault-points")]
use super::with_fault_points;
use super::{leader, upgrade};

/// An upgrade that must fail. Returns its message.
async fn fails(home: &Home, old: &mut Proxy, options: &[&str]) -> String {
    let arguments: Vec<&str> = ["upgrade"].iter().chain(options).copied().collect();
    let (code, said, message) = cli(&home.socket(), &arguments).await;
    assert_eq!(code, 3, "{said}{message}{}", home.messages());
    assert_eq!(leader(home).await, old.pid());
    assert_eq!(Wire::connect(old.address).await.get("/").await.status, 200);
    assert!(old.is_running());
    until("it takes changes", async || {
        (cli(&home.socket(), &["switch", "green"]).await.0 == 0).then_some(())
    })
    .await;
    message
}

/// A program that does this.
fn script(home: &Home, name: &str, text: &str) -> PathBuf {
    let path = home.path(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn whatever_is_wrong_with_the_new_one_the_old_one_goes_on_and_the_reason_is_said() {
    let (home, mut old, _blue, _green) = pair().await;
    let missing = home.path("nothing").display().to_string();
    let message = fails(&home, &mut old, &["--binary", &missing]).await;
    assert!(message.contains(&format!("cannot start {missing}: No such file")), "{message}");
    let ends = script(&home, "ends", "exit 7").display().to_string();
    let message = fails(&home, &mut old, &["--binary", &ends]).await;
    assert!(message.contains("it ended with exit code 7"), "{message}");
    let crashes = script(&home, "crashes", "kill -SEGV $$").display().to_string();
    let message = fails(&home, &mut old, &["--binary", &crashes]).await;
    assert!(message.contains("it was ended by signal 11"), "{message}");
    // It ignores a signal that asks it to end.
    let hangs = script(&home, "hangs", "trap '' TERM; while :; do sleep 1; done").display().to_string();
    let message = fails(&home, &mut old, &["--binary", &hangs, "--timeout", "100ms"]).await;
    assert!(message.contains("didn't lead in time"), "{message}");
    let config = home.config();
    home.write_config(&config.replace("active = \"blue\"", "active = \"red\""));
    let message = fails(&home, &mut old, &[]).await;
    assert!(message.contains("cannot use ") && message.contains("active"), "{message}");
    // An address that another process has.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    home.write_config(
        &config.replace("listen = [\"127.0.0.1:0\"]", &format!("listen = [\"127.0.0.1:0\", \"{address}\"]")),
    );
    let message = fails(&home, &mut old, &[]).await;
    assert!(message.contains(&format!("cannot listen on {address} (server.listen)")), "{message}");
    home.write_config(&config);
    let next = upgrade(&home).await;
    assert_eq!(leader(&home).await, next.0);
}

#[tokio::test]
async fn there_is_one_upgrade_at_a_time_and_a_stop_ends_it() {
    let (home, mut old, _blue, _green) = pair().await;
    let said = home.path("said");
    let hangs = script(&home, "hangs", &format!("echo $$ > {}; exec sleep 600", said.display()));
    let (socket, hangs) = (home.socket(), hangs.display().to_string());
    let first = tokio::spawn(async move { cli(&socket, &["upgrade", "--binary", &hangs]).await });
    until("it is started", async || {
        std::fs::read_to_string(&said).is_ok_and(|pid| pid.ends_with('\n')).then_some(())
    })
    .await;
    let message = fails(&home, &mut old, &[]).await;
    assert!(message.contains("an upgrade is already in progress"), "{message}");
    old.signal(rustix::process::Signal::TERM);
    let pid: u32 = std::fs::read_to_string(&said).unwrap().trim().parse().unwrap();
    super::Started(pid).ended().await;
    assert_eq!(old.ended().await.code(), Some(0));
    assert_ne!(first.await.unwrap().0, 0);
}

/// The new process dies, or finds another state than was reported, while it has the locks.
#[cfg(feature = "fault-points")]
#[tokio::test]
async fn a_new_one_that_fails_while_it_has_the_locks_gives_the_lead_back() {
    let (home, mut first, _blue, _green) = pair().await;
    first.kill();
    let (mut old, fault) = with_fault_points(&home).await;
    for point in ["takeover_joined", "takeover_yielded", "takeover_renamed", "takeover_accepting"] {
        std::fs::write(&fault, point).unwrap();
        let message = fails(&home, &mut old, &[]).await;
        assert!(message.contains("it was ended by signal 9"), "{point}: {message}");
    }
    std::fs::write(&fault, "wait takeover_locked").unwrap();
    let socket = home.socket();
    let upgrading = tokio::spawn(async move { cli(&socket, &["upgrade"]).await });
    let reached = async || fault.with_extension("reached").exists().then_some(());
    until("the new one has the lock", reached).await;
    let state = home.state_file();
    let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    let generation = text["generation"].as_u64().unwrap() + 7;
    text["generation"] = generation.into();
    text.as_object_mut().unwrap().remove("checksum");
    std::fs::write(&state, text.to_string()).unwrap();
    std::fs::write(&fault, "").unwrap();
    let (code, _, message) = upgrading.await.unwrap();
    assert_eq!(code, 3, "{message}");
    assert!(message.contains(&format!("the state file has generation {generation}")), "{message}");
    assert_eq!(leader(&home).await, old.pid());
    let next = upgrade(&home).await;
    assert_eq!(leader(&home).await, next.0);
    next.signal(rustix::process::Signal::TERM);
    assert_eq!(old.ended().await.code(), Some(0));
}
