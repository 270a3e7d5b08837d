//! Kept connections to a backend that die as they are used, or long before; and a real Node server.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::harness::{Home, Proxy, read_head, soon, until};
use crate::wire::Wire;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// How a backend drops a kept connection when the next request arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// It reads the request and closes: uh-proxy reads the end.
    End,
    /// It reads the request, sends an interim response, and closes.
    Interim,
    /// It resets without reading the request: uh-proxy's read fails.
    Reset,
}

fn reset(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Answers the first request of each connection, and drops it at the second. Returns how many second requests it has
/// read.
async fn dies_at_the_second(death: Death) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let read = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&read);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                if read_head(&mut stream).await.is_none() || stream.write_all(OK).await.is_err() {
                    return;
                }
                if !matches!(stream.peek(&mut [0]).await, Ok(1)) {
                    return;
                }
                match death {
                    Death::End | Death::Interim => {
                        read_head(&mut stream).await;
                        count.fetch_add(1, Ordering::SeqCst);
                        if death == Death::Interim {
                            let _ = stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n").await;
                        }
                    }
                    Death::Reset => reset(&stream),
                }
            });
        }
    });
    (address, read)
}

async fn before(address: std::net::SocketAddr) -> (Home, Proxy) {
    let service = "[services.app.health]\nenabled = false";
    let home = Home::new(address, "127.0.0.1:9").server("threads = 1").service(service);
    let proxy = home.start().await;
    (home, proxy)
}

async fn retries(proxy: &Proxy) -> usize {
    let text = proxy.client.metrics().await.unwrap();
    let line = "uh_proxy_retries_total{service=\"app\",backend=\"blue\",reason=\"stale_connection\"} ";
    text.lines().find_map(|found| found.strip_prefix(line)).map_or(0, |count| count.parse().unwrap())
}

const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";

#[tokio::test]
async fn a_get_survives_a_connection_that_ends_or_is_reset_as_it_is_used_and_a_post_is_not_repeated() {
    for death in [Death::End, Death::Reset] {
        let (address, read) = dies_at_the_second(death).await;
        let (_home, proxy) = before(address).await;
        let mut wire = Wire::connect(proxy.address).await;
        for _ in 0..50 {
            assert_eq!(wire.get("/").await.status, 200, "{death:?}");
        }
        assert_eq!(retries(&proxy).await, 49, "{death:?}: not every kept connection died");
        let before = read.load(Ordering::SeqCst);
        // The idle connection of the previous request dies under the first of these, and it's unknown whether that was
        // executed. The second opens its own connection.
        wire.send(POST).await;
        assert_eq!(wire.response().await.status, 502, "{death:?}");
        wire.send(POST).await;
        assert_eq!(wire.response().await.status, 200, "{death:?}");
        assert_eq!(retries(&proxy).await, 49, "{death:?}: a POST was sent twice");
        let reads = usize::from(death == Death::End);
        assert_eq!(read.load(Ordering::SeqCst) - before, reads, "{death:?}");
    }
}

/// After an interim response the backend has the request, whatever happens to its connection.
#[tokio::test]
async fn a_get_is_not_repeated_once_an_interim_response_has_come() {
    let (address, read) = dies_at_the_second(Death::Interim).await;
    let (_home, proxy) = before(address).await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(wire.get("/").await.status, 200);
    assert_eq!(wire.get("/").await.status, 103);
    assert_eq!(wire.response().await.status, 502);
    assert_eq!(read.load(Ordering::SeqCst), 1);
    assert_eq!(retries(&proxy).await, 0);
}

/// Many requests arrive at the same moment, and at the first one the backend resets all other kept connections:
/// uh-proxy polled its sockets just before, so it only notices when it writes or reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_onto_connections_that_are_reset_meanwhile_gives_no_get_an_error() {
    const CLIENTS: usize = 60;
    const ROUNDS: usize = 8;
    const MAX_ROUNDS: usize = 400;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let burst = Arc::new(watch::Sender::new(0u64));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let burst = Arc::clone(&burst);
            tokio::spawn(async move {
                let mut kept = false;
                loop {
                    let (mut news, mut first) = (burst.subscribe(), [0]);
                    tokio::select! {
                        _ = news.changed(), if kept => return reset(&stream),
                        _ = stream.peek(&mut first) => {}
                    }
                    if read_head(&mut stream).await.is_none() {
                        return;
                    }
                    burst.send_modify(|burst| *burst += 1);
                    if stream.write_all(OK).await.is_err() {
                        return;
                    }
                    kept = true;
                }
            });
        }
    });
    let (_home, proxy) = before(address).await;
    let mut wires = Vec::new();
    for _ in 0..CLIENTS {
        wires.push(Wire::connect(proxy.address).await);
    }
    let mut rounds = 0;
    // Which connections die in time depends on the scheduler: repeat until one did.
    while rounds < ROUNDS || retries(&proxy).await == 0 {
        rounds += 1;
        assert!(rounds <= MAX_ROUNDS, "no connection died in time: this shows nothing");
        // A stopped uh-proxy finds all of them at once when it continues.
        proxy.signal(rustix::process::Signal::STOP);
        for wire in &mut wires {
            wire.send(crate::wire::get("/")).await;
        }
        proxy.signal(rustix::process::Signal::CONT);
        for wire in &mut wires {
            assert_eq!(wire.response().await.status, 200);
        }
    }
}

/// The backend announces how long uh-proxy may keep a connection, minus a second; here, that is not at all.
#[tokio::test]
async fn a_shorter_keep_alive_of_the_backend_is_honoured() {
    let accepted = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&accepted);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                while read_head(&mut stream).await.is_some() {
                    let reply =
                        b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1, max=9\r\nContent-Length: 0\r\n\r\n";
                    let _ = stream.write_all(reply).await;
                }
            });
        }
    });
    let (_home, proxy) = before(address).await;
    let mut wire = Wire::connect(proxy.address).await;
    for _ in 0..3 {
        assert_eq!(wire.get("/").await.status, 200);
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 3);
}

/// By default, Node closes a connection after 5 s. uh-proxy closes earlier, by its own default and by what Node
/// announces, so no request is sent on a closing connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_server_with_its_default_keep_alive_gives_no_error() {
    const CLIENTS: u64 = 24;
    const SCRIPT: &str = "const server = require('node:http').createServer((request, response) => {
        request.resume().on('end', () => response.end('ok'));
      });
      server.listen(0, '127.0.0.1', () => console.log(server.address().port));";
    let mut node = tokio::process::Command::new("node");
    node.args(["-e", SCRIPT]).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut node = node.spawn().expect("Node (`.ci/needs test` installs it)");
    let mut port = String::new();
    soon("Node's port", BufReader::new(node.stdout.take().unwrap()).read_line(&mut port)).await.unwrap();
    let service = "[services.app.health]\nenabled = false";
    let home = Home::new(format!("127.0.0.1:{}", port.trim()), "127.0.0.1:9").service(service);
    let proxy = home.start().await;
    let target = proxy.address;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            tokio::spawn(async move {
                let mut wire = Wire::connect(target).await;
                for pause_ms in [4000 + client * 2000 / CLIENTS, 0] {
                    for request in 0..4 {
                        wire.send(if request % 2 == 0 { POST.to_owned() } else { crate::wire::get("/") })
                            .await;
                        assert_eq!(wire.response().await.status, 200);
                    }
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    until("nothing is in flight", async || {
        (proxy.backend("blue").await.requests_in_flight == 0).then_some(())
    })
    .await;
}
