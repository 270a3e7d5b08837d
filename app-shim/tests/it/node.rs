//! A plain Node server without signal handling: behind the shim, and without it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::shim::{Shim, command, with_streams};

const PLAIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/plain.js");
/// Clients that keep their connection, and clients that open one for each request.
const KEPT: usize = 40;
const FRESH: usize = 10;

#[derive(Debug, Default)]
struct Counts {
    answered: AtomicUsize,
    /// Sent a request, but got no complete response.
    cut: AtomicUsize,
}

enum End {
    /// The response is complete, and the connection stays open.
    Kept,
    /// The response is complete, and closes the connection.
    Closed,
    /// The response is incomplete.
    Cut,
}

async fn ask(stream: &mut TcpStream) -> End {
    let mut answer = Vec::new();
    if stream.write_all(b"GET /load HTTP/1.1\r\nhost: a\r\n\r\n").await.is_err() {
        return End::Cut;
    }
    // Node sends it chunked or with a length, in one piece or two.
    while !answer.ends_with(b"answer to /load\n") && !answer.ends_with(b"0\r\n\r\n") {
        match stream.read_buf(&mut answer).await {
            Ok(0) | Err(_) => return End::Cut,
            Ok(_) => {}
        }
    }
    let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    if text.contains("connection: close") { End::Closed } else { End::Kept }
}

/// Sends requests until it is refused.
async fn client(address: SocketAddr, keep: bool, counts: Arc<Counts>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(address).await else { return };
        loop {
            match ask(&mut stream).await {
                End::Cut => {
                    counts.cut.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                End::Closed => {
                    counts.answered.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                End::Kept => {
                    counts.answered.fetch_add(1, Ordering::Relaxed);
                    if !keep {
                        break;
                    }
                }
            }
        }
    }
}

/// Applies load, sends SIGTERM, and waits until every client is refused.
async fn load_and_terminate(address: SocketAddr, process: Pid) -> (usize, usize) {
    let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    for index in 0..KEPT + FRESH {
        clients.spawn(client(address, index < KEPT, Arc::clone(&counts), Arc::clone(&stop)));
    }
    let enough = async {
        while counts.answered.load(Ordering::Relaxed) < 1_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    crate::shim::within("load", enough).await;
    kill_process(process, Signal::TERM).unwrap();
    crate::shim::within("every client to be refused", async { while clients.join_next().await.is_some() {} })
        .await;
    stop.store(true, Ordering::Relaxed);
    (counts.answered.load(Ordering::Relaxed), counts.cut.load(Ordering::Relaxed))
}

#[tokio::test]
async fn a_plain_node_server_behind_the_shim_cuts_no_response() {
    let directory = tempfile::tempdir().unwrap();
    let app = format!("unix:{}", directory.path().join("app.sock").display());
    let mut shim = Shim::spawn(command(&["--listen", "127.0.0.1:0", "--app", &app], &["node", PLAIN]));
    let address = shim.address().await;
    shim.log.wait_for("App accepts connections").await;
    let (answered, cut) = load_and_terminate(address, shim.pid()).await;
    println!("wrapped: {answered} answered, {cut} cut");
    assert_eq!(cut, 0, "{:#?}", shim.log.all());
    assert_eq!(shim.code().await, Some(0));
    shim.log.wait_for("All connections drained").await;
    shim.log.wait_for("Server exiting gracefully").await;
}

/// Shows that the test above can fail: the same without the shim.
#[tokio::test]
async fn the_same_server_without_the_shim_cuts_responses() {
    let mut node = Command::new("node");
    node.arg(PLAIN).env("PORT", "0").env("HOSTNAME", "127.0.0.1");
    let mut node = Shim::spawn(with_streams(node));
    let line = node.output.wait_for("listening ").await;
    let bound: serde_json::Value = serde_json::from_str(line.strip_prefix("listening ").unwrap()).unwrap();
    let address = format!("127.0.0.1:{}", bound["port"]).parse().unwrap();
    let (answered, cut) = load_and_terminate(address, node.pid()).await;
    println!("bare: {answered} answered, {cut} cut, with {} clients", KEPT + FRESH);
    assert!(cut > 0);
    assert_eq!(node.status().await.code(), None, "it is ended by the signal");
}
