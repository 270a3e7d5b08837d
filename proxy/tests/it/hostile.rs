//! Those who share the machine: what they put in the way, and what they send.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};

use crate::harness::{Home, SampleApp, cli, pair, soon, until};

/// Starts it, and expects it to refuse with this message.
async fn refused(home: &Home, wanted: &str) {
    let mut command = home.command();
    command.stderr(Stdio::piped());
    let output = soon("the end", tokio::process::Command::from(command).output()).await.unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains(wanted), "{message}");
}

#[tokio::test]
async fn what_is_not_a_stale_socket_of_ours_is_left_alone() {
    let home = Home::new("127.0.0.1:9", "127.0.0.1:9");
    fs::create_dir(home.path("run")).unwrap();
    fs::set_permissions(home.path("run"), fs::Permissions::from_mode(0o700)).unwrap();
    let precious = home.path("precious");
    fs::write(&precious, "mine").unwrap();
    symlink(&precious, home.socket()).unwrap();
    refused(&home, "is not a socket: it is left alone").await;
    fs::remove_file(home.socket()).unwrap();
    // A link to somebody's socket, dead or alive, is a link too.
    let other = UnixListener::bind(home.path("other.sock")).unwrap();
    symlink(home.path("other.sock"), home.socket()).unwrap();
    refused(&home, "is not a socket: it is left alone").await;
    fs::remove_file(home.socket()).unwrap();
    // Where our new socket is made, a link is taken away, not followed.
    symlink(&precious, home.path("run/admin.sock.new")).unwrap();
    let proxy = home.start().await;
    assert_eq!(fs::read_to_string(&precious).unwrap(), "mine");
    drop((proxy, other));
    for mode in [0o777, 0o770, 0o1777] {
        fs::set_permissions(home.path("run"), fs::Permissions::from_mode(mode)).unwrap();
        refused(&home, "others may write to").await;
    }
}

#[tokio::test]
async fn an_admin_socket_that_is_removed_is_made_anew_with_its_mode() {
    let (home, proxy, _blue, _green) = pair().await;
    fs::remove_file(home.socket()).unwrap();
    until("the socket is there again", async || home.socket().exists().then_some(())).await;
    assert_eq!(fs::metadata(home.socket()).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(cli(&home.socket(), &["switch", "green"]).await.0, 0);
    fs::remove_dir_all(home.path("run")).unwrap();
    until("the directory is there again", async || home.socket().exists().then_some(())).await;
    assert_eq!(fs::metadata(home.path("run")).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(cli(&home.socket(), &["switch", "blue"]).await.0, 0);
    home.until_said("the admin socket was removed, and is made anew").await;
    // A second front door is refused as before.
    refused(&home, "another uh-proxy uses the admin socket").await;
    drop(proxy);
}

#[tokio::test]
async fn an_admin_socket_that_somebody_else_has_replaced_is_told_of_and_left_alone() {
    let (home, mut proxy, _blue, _green) = pair().await;
    fs::remove_file(home.socket()).unwrap();
    let other = UnixListener::bind(home.socket()).unwrap();
    home.until_said("somebody has put something else in the place of the admin socket").await;
    proxy.signal(rustix::process::Signal::TERM);
    proxy.ended().await;
    assert!(home.socket().exists(), "somebody else's socket was removed");
    drop(other);
}

#[tokio::test]
async fn an_operator_gets_through_a_crowd_that_asks_nothing() {
    let (home, _proxy, _blue, _green) = pair().await;
    let mut crowd = tokio::task::JoinSet::new();
    for _ in 0..600 {
        let socket = home.socket();
        crowd.spawn(async move {
            loop {
                if let Ok(mut stream) = UnixStream::connect(&socket).await {
                    let _ = stream.read(&mut [0]).await;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for to in ["green", "blue", "green", "blue"] {
        let (code, _, message) = cli(&home.socket(), &["switch", to]).await;
        assert_eq!(code, 0, "{message}");
    }
}

#[tokio::test]
async fn an_access_log_that_is_a_pipe_without_a_reader_is_an_error_at_once() {
    let blue = SampleApp::start("blue", "1").await;
    let home = Home::new(blue.address, "127.0.0.1:9");
    assert!(std::process::Command::new("mkfifo").arg(home.path("access.log")).status().unwrap().success());
    refused(&home, "a pipe that nobody reads").await;
}
