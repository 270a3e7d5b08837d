//! uh-keeper as a process, with real sockets and other users.
#![allow(missing_docs, reason = "it is a test")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may panic")]
#![allow(clippy::print_stderr, reason = "what is skipped is reported")]

use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Signal, geteuid};
use tempfile::TempDir;
use uh_keeper::wire::{Answer, Link, LinkError};
use uh_testkit::process::{Finished, Process, run};
use uh_testkit::wait;

const PROGRAM: &str = env!("CARGO_BIN_EXE_uh-keeper");

/// A directory of its own with the socket of a keeper.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("run/sock")
    }

    fn command(&self, addresses: &[SocketAddr]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("listen").arg("--socket").arg(self.socket());
        command.args(addresses.iter().map(ToString::to_string));
        command
    }

    async fn start(&self, addresses: &[SocketAddr]) -> Process {
        let mut keeper = Process::spawn("uh-keeper", &mut self.command(addresses), self.0.path()).unwrap();
        wait::until("it answers", async || {
            keeper.check_running().unwrap();
            self.ask(&[]).ok()
        })
        .await
        .unwrap();
        keeper
    }

    fn ask(&self, holding: &[&TcpListener]) -> Result<Answer, LinkError> {
        Link::connect(&self.socket())?.ask(holding)
    }

    async fn list(&self) -> Finished {
        let mut command = Command::new(PROGRAM);
        command.args(["list", "--socket"]).arg(self.socket());
        run(command, wait::SOON).await.unwrap()
    }
}

fn free() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[tokio::test]
async fn a_client_waits_in_the_queue_until_somebody_accepts() {
    let home = Home::new();
    let _keeper = home.start(&[free(), "[::1]:0".parse().unwrap()]).await;
    let address = home.ask(&[]).unwrap().held[0].0;
    let client = TcpStream::connect(address).unwrap();
    // Nobody has accepted it, and the first caller is gone.
    let answer = home.ask(&[]).unwrap();
    let accepted = wait::until("it is accepted", async || answer.held[0].1.accept().ok()).await.unwrap();
    assert_eq!(accepted.1, client.local_addr().unwrap());
    assert!(answer.held[1].0.is_ipv6() && answer.missing.is_empty());
}

#[tokio::test]
async fn only_the_same_user_and_root_get_the_sockets() {
    let home = Home::new();
    let keeper = home.start(&[free()]).await;
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(home.socket()), mode(home.0.path().join("run"))), (0o600, 0o700));
    if !geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    // Not even if somebody has opened the file to all.
    let program = home.0.path().join("uh-keeper");
    fs::copy(PROGRAM, &program).unwrap();
    fs::set_permissions(home.socket(), Permissions::from_mode(0o666)).unwrap();
    for directory in [home.0.path(), &home.0.path().join("run")] {
        fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    }
    let list_as = async |user: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]).arg(&program);
        command.args(["list", "--socket"]).arg(home.socket());
        run(command, wait::SOON).await.unwrap()
    };
    // A program that was copied just now may still be open for writing in a process that another test starts.
    let refused = wait::until("it can be run", async || {
        Some(list_as("65534").await).filter(|finished| finished.status.code() != Some(126))
    });
    let refused = refused.await.unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", refused.output);
    assert!(refused.output.contains("user ID 65534 may not have these sockets"), "{}", refused.output);
    assert!(!refused.output.contains("127.0.0.1"), "{}", refused.output);
    assert!(keeper.output().unwrap().contains("refused a caller: user ID 65534"));
    // The same the other way round: a caller doesn't take sockets from a stranger.
    drop(keeper);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
    let theirs = home.0.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::set_permissions(&theirs, Permissions::from_mode(0o777)).unwrap();
    command.args(["listen", "127.0.0.1:0", "--socket"]).arg(theirs.join("sock"));
    let _stranger = Process::spawn("stranger", &mut command, home.0.path()).unwrap();
    let listed = async || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65533", "--regid", "65533", "--clear-groups"]).arg(&program);
        command.args(["list", "--socket"]).arg(theirs.join("sock"));
        fs::set_permissions(theirs.join("sock"), Permissions::from_mode(0o666)).ok()?;
        Some(run(command, wait::SOON).await.unwrap())
            .filter(|finished| !finished.output.contains("no uh-keeper"))
    };
    let listed = wait::until("it is refused", listed).await.unwrap();
    assert!(listed.output.contains("runs as user ID 65534"), "{}", listed.output);
}

#[tokio::test]
async fn what_is_held_is_listed_and_a_missing_address_is_a_failure() {
    let home = Home::new();
    let taken = TcpListener::bind(free()).unwrap();
    let address = taken.local_addr().unwrap();
    let _keeper = home.start(&[address, free()]).await;
    let listed = home.list().await;
    assert_eq!(listed.status.code(), Some(1));
    assert!(
        listed.output.contains(&format!("{address} is missing: Address already in use")),
        "{}",
        listed.output
    );
    drop(taken);
    let bound = async || Some(home.list().await).filter(|listed| listed.status.success());
    let listed = wait::until("the address is bound once it is free", bound).await.unwrap();
    assert_eq!(listed.output.lines().next(), Some(address.to_string().as_str()));
}

#[tokio::test]
async fn a_keeper_that_was_killed_gets_its_sockets_back_with_their_clients() {
    let home = Home::new();
    let mut keeper = home.start(&[free()]).await;
    let before = home.ask(&[]).unwrap();
    let (address, socket) = &before.held[0];
    let client = TcpStream::connect(address).unwrap();
    keeper.kill().unwrap();
    assert!(matches!(home.ask(&[]), Err(LinkError::NoKeeper { .. })));
    let _again = home.start(&[*address]).await;
    assert!(home.ask(&[]).unwrap().held.is_empty(), "it is bound by this test still");
    assert_eq!(home.ask(&[socket]).unwrap().held[0].0, *address);
    drop(before);
    let after = home.ask(&[]).unwrap();
    let accepted = wait::until("it is accepted", async || after.held[0].1.accept().ok()).await.unwrap();
    assert_eq!(accepted.1, client.local_addr().unwrap());
}

#[tokio::test]
async fn a_caller_notices_the_end_of_its_keeper() {
    let home = Home::new();
    let mut keeper = home.start(&[free()]).await;
    let link = Link::connect(&home.socket()).unwrap();
    assert_eq!(link.ask(&[]).unwrap().held.len(), link.ask(&[]).unwrap().held.len(), "it may ask again");
    assert!(!link.is_gone_within(std::time::Duration::from_millis(1)));
    keeper.kill().unwrap();
    assert!(link.is_gone_within(wait::SOON));
}

#[tokio::test]
async fn a_second_keeper_does_not_take_the_place_of_the_first() {
    let home = Home::new();
    let _keeper = home.start(&[free()]).await;
    let held = home.ask(&[]).unwrap().held[0].0;
    let second = run(home.command(&[free()]), wait::SOON).await.unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(second.output.contains("another uh-keeper answers there"), "{}", second.output);
    assert_eq!(home.ask(&[]).unwrap().held[0].0, held);
}

#[tokio::test]
async fn an_address_that_can_never_be_bound_ends_the_keeper() {
    let home = Home::new();
    let ended = run(home.command(&["192.0.2.1:80".parse().unwrap()]), wait::SOON).await.unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.output.contains("cannot listen on 192.0.2.1:80: "), "{}", ended.output);
    assert!(!ended.output.contains("os error"), "{}", ended.output);
}

#[tokio::test]
async fn idle_callers_keep_nobody_out() {
    let home = Home::new();
    let _keeper = home.start(&[free()]).await;
    let idle: Vec<Link> = (0..40).map(|_| Link::connect(&home.socket()).unwrap()).collect();
    assert!(
        wait::until("the oldest is dropped", async || idle[0].is_gone_within(wait::POLL).then_some(()))
            .await
            .is_ok()
    );
    assert_eq!(home.ask(&[]).unwrap().held.len(), 1);
}

#[tokio::test]
async fn signals_end_it_at_once_and_a_hangup_does_not() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let home = Home::new();
        let mut keeper = home.start(&[free()]).await;
        keeper.signal(Signal::HUP).unwrap();
        assert_eq!(home.ask(&[]).unwrap().held.len(), 1);
        keeper.signal(signal).unwrap();
        assert_eq!(keeper.ended(wait::SOON).await.unwrap().code(), Some(0), "{signal:?}");
    }
}

/// As in two containers: neither sees the other's process ID.
#[tokio::test]
async fn a_caller_in_another_pid_namespace_gets_the_sockets() {
    let mut apart = Command::new("unshare");
    apart.args(["--pid", "--fork"]);
    let mut trial = Command::new("unshare");
    trial.args(["--pid", "--fork", "true"]);
    if !run(trial, wait::SOON).await.is_ok_and(|finished| finished.status.success()) {
        eprintln!("skipped: a PID namespace of its own, which needs root");
        return;
    }
    let home = Home::new();
    let address = wait::free_address();
    let _keeper = home.start(&[address]).await;
    apart.arg(PROGRAM).args(["list", "--socket"]).arg(home.socket());
    let listed = run(apart, wait::SOON).await.unwrap();
    assert_eq!(listed.output.trim(), address.to_string());
}
