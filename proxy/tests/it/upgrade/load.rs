//! Load over HTTP/1.1, TLS, HTTP/2 and WebSockets while uh-proxy is upgraded and goes back, one after the other.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use uh_testkit::websocket::WebSocket;

use crate::harness::{cli, soon, until};
use crate::http2;
use crate::tls::certificates::Site;
use crate::tls::clients::Rustls;

use super::{Started, back, upgrade};

/// How many upgrades, each with its way back, unless the variable says another number.
const ROUNDS: usize = 5;

/// The variable.
const VARIABLE: &str = "UH_UPGRADE_ROUNDS";

/// Clients of each kind.
const CLIENTS: usize = 3;

/// Between two requests of a client: others need the processor, too.
const PAUSE: Duration = Duration::from_millis(2);

/// How long anything may take before it has failed.
const WITHIN: Duration = Duration::from_secs(30);

/// What happened to requests of one kind.
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicUsize,
    refused: AtomicUsize,
    reset: AtomicUsize,
    failed: AtomicUsize,
    /// From the connect to the end of the response.
    longest_new_ms: AtomicUsize,
}

/// Why there is no response.
#[derive(Debug)]
enum Lost {
    Refused,
    Reset,
    Failed,
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                Self::Reset
            }
            _ => Self::Failed,
        }
    }
}

impl Tally {
    fn add(&self, outcome: Result<(), Lost>) {
        let counter = match outcome {
            Ok(()) => &self.answered,
            Err(Lost::Refused) => &self.refused,
            Err(Lost::Reset) => &self.reset,
            Err(Lost::Failed) => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn add_new(&self, begun: Instant, outcome: Result<(), Lost>) {
        let ms = usize::try_from(begun.elapsed().as_millis()).unwrap();
        self.longest_new_ms.fetch_max(ms, Ordering::Relaxed);
        self.add(outcome);
    }

    fn lost(&self) -> usize {
        [&self.refused, &self.reset, &self.failed].map(|counter| counter.load(Ordering::Relaxed)).iter().sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let [answered, refused, reset, failed] =
            [read(&self.answered), read(&self.refused), read(&self.reset), read(&self.failed)];
        write!(f, "{answered} answered, {refused} refused, {reset} reset, {failed} failed")?;
        match read(&self.longest_new_ms) {
            0 => Ok(()),
            longest => write!(f, ", longest wait of a new client {longest} ms"),
        }
    }
}

/// A response to a `GET` of HTTP/1.1 with a length. Returns whether the server keeps the connection.
async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<bool, Lost> {
    let exchange = async {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await?;
        stream.flush().await?;
        let mut text = Vec::new();
        let end = loop {
            if let Some(end) = text.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut text).await? == 0 {
                return Err(Lost::Reset);
            }
        };
        let head = String::from_utf8_lossy(&text[..end]).to_ascii_lowercase();
        let length =
            head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse::<usize>().ok());
        let length = length.filter(|_| head.starts_with("http/1.1 200 ")).ok_or(Lost::Failed)?;
        while text.len() < end + length {
            if stream.read_buf(&mut text).await? == 0 {
                return Err(Lost::Reset);
            }
        }
        Ok(!head.contains("connection: close"))
    };
    tokio::time::timeout(WITHIN, exchange).await.unwrap_or(Err(Lost::Failed))
}

/// A client's connections of one kind.
trait Connect: Clone + Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;

    fn connect(&self) -> impl Future<Output = Result<Self::Stream, Lost>> + Send;
}

#[derive(Clone)]
struct Plain(SocketAddr);

impl Connect for Plain {
    type Stream = TcpStream;

    async fn connect(&self) -> Result<TcpStream, Lost> {
        let connected = tokio::time::timeout(WITHIN, TcpStream::connect(self.0)).await;
        Ok(connected.map_err(|_| Lost::Failed)??)
    }
}

#[derive(Clone)]
struct Tls(SocketAddr, Arc<Rustls>);

impl Connect for Tls {
    type Stream = tokio_rustls::client::TlsStream<TcpStream>;

    async fn connect(&self) -> Result<Self::Stream, Lost> {
        let stream = Plain(self.0).connect().await?;
        let name = rustls::pki_types::ServerName::try_from("app.test").unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.1.0));
        let shaken = tokio::time::timeout(WITHIN, connector.connect(name, stream)).await;
        Ok(shaken.map_err(|_| Lost::Failed)??)
    }
}

/// Requests on connections that are kept as long as the server does, or on a new one each time.
async fn http1(connect: impl Connect, keeps: bool, stop: Arc<AtomicBool>, tally: Arc<Tally>) {
    let mut kept = None;
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let (mut stream, is_new) = match kept.take() {
            Some(stream) => (stream, false),
            None => match connect.connect().await {
                Ok(stream) => (stream, true),
                Err(lost) => {
                    tally.add(Err(lost));
                    continue;
                }
            },
        };
        let outcome = exchange(&mut stream).await;
        if keeps && matches!(outcome, Ok(true)) {
            kept = Some(stream);
        }
        let outcome = outcome.map(drop);
        if is_new {
            tally.add_new(begun, outcome);
        } else {
            tally.add(outcome);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Requests over HTTP/2, on one connection until the server wants no more of them there.
async fn http2(connect: Tls, stop: Arc<AtomicBool>, tally: Arc<Tally>) {
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let stream = match connect.connect().await {
            Ok(stream) => stream,
            Err(lost) => {
                tally.add(Err(lost));
                continue;
            }
        };
        let Ok((requests, connection)) = h2::client::handshake(stream).await else {
            tally.add(Err(Lost::Failed));
            continue;
        };
        let connection = tokio::spawn(connection);
        let mut is_new = true;
        while !stop.load(Ordering::Relaxed) {
            // An error here: the server has said that it takes no more streams.
            let Ok(mut ready) = requests.clone().ready().await else { break };
            let Ok((response, _)) = ready.send_request(http2::clients::get("/"), true) else { break };
            let outcome = match tokio::time::timeout(WITHIN, response).await {
                Ok(Ok(response)) => match http2::clients::complete(response).await {
                    Ok(answer) if answer.status == 200 => Ok(()),
                    _ => Err(Lost::Failed),
                },
                // Nothing was done for it (RFC 9113 §8.7): the client sends it again.
                Ok(Err(error))
                    if error.reason() == Some(h2::Reason::REFUSED_STREAM)
                        || error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) =>
                {
                    break;
                }
                Ok(Err(_)) | Err(_) => Err(Lost::Failed),
            };
            if std::mem::take(&mut is_new) {
                tally.add_new(begun, outcome);
            } else {
                tally.add(outcome);
            }
            tokio::time::sleep(PAUSE).await;
        }
        drop(requests);
        connection.abort();
    }
}

/// Messages over a WebSocket, which the server may close between two of them.
async fn websocket(address: SocketAddr, stop: Arc<AtomicBool>, tally: Arc<Tally>) {
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let mut socket = match tokio::time::timeout(WITHIN, WebSocket::open(address, "/ws")).await {
            Ok(Ok(socket)) => socket,
            other => {
                println!("no WebSocket: {other:?}");
                tally.add(Err(Lost::Failed));
                continue;
            }
        };
        tally.add_new(begun, Ok(()));
        while !stop.load(Ordering::Relaxed) {
            match tokio::time::timeout(WITHIN, socket.echo("hello")).await {
                Ok(Ok(())) => tally.add(Ok(())),
                Ok(Err(error)) if error.to_string().contains("the server closed the WebSocket") => break,
                other => {
                    println!("a WebSocket without its end: {other:?}");
                    tally.add(Err(Lost::Reset));
                    break;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

const KINDS: [&str; 6] =
    ["HTTP/1.1 kept", "HTTP/1.1 new", "HTTPS kept", "HTTPS new", "HTTP/2 over TLS", "WebSocket"];

struct Clients {
    stop: Arc<AtomicBool>,
    tallies: [Arc<Tally>; 6],
    running: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(site: &Site) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let tallies: [Arc<Tally>; 6] = Default::default();
        let plain = Plain(site.proxy.address);
        let tls = Tls(site.address, Arc::new(Rustls::new(&site.authority)));
        let with_h2 = Rustls::with(&site.authority, rustls::ALL_VERSIONS, |config| {
            config.alpn_protocols = vec![b"h2".to_vec()];
        });
        let h2 = Tls(site.address, Arc::new(with_h2));
        let mut running = Vec::new();
        for _ in 0..CLIENTS {
            let of = |kind: usize| (Arc::clone(&stop), Arc::clone(&tallies[kind]));
            for (keeps, [on_plain, on_tls]) in [(true, [0, 2]), (false, [1, 3])] {
                let (stop, tally) = of(on_plain);
                running.push(tokio::spawn(http1(plain.clone(), keeps, stop, tally)));
                let (stop, tally) = of(on_tls);
                running.push(tokio::spawn(http1(tls.clone(), keeps, stop, tally)));
            }
            let (stop, tally) = of(4);
            running.push(tokio::spawn(http2(h2.clone(), stop, tally)));
            let (stop, tally) = of(5);
            running.push(tokio::spawn(websocket(site.proxy.address, stop, tally)));
        }
        Self { stop, tallies, running }
    }

    async fn until_more(&self) {
        let answered = || self.tallies.each_ref().map(|tally| tally.answered.load(Ordering::Relaxed));
        let before = answered();
        until("requests of every kind are answered", async || {
            answered().iter().zip(before).all(|(now, before)| *now > before + 2).then_some(())
        })
        .await;
    }

    async fn end(self, what: &str) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.running {
            soon("a client's end", client).await.unwrap();
        }
        for (kind, tally) in KINDS.iter().zip(&self.tallies) {
            println!("{what}: {kind}: {tally}");
        }
        self.tallies.iter().map(|tally| tally.lost()).sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_and_ways_back_in_a_row_lose_nothing_of_any_protocol() {
    let rounds = std::env::var(VARIABLE).ok().map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    // A client that pauses for long on a busy machine must not find its connection closed between two requests.
    let site = Site::start_as("shutdown_idle_grace = \"20s\"", "", |home| {
        home.service("tunnels_at_drain = \"close\"")
    })
    .await;
    let clients = Clients::start(&site);
    clients.until_more().await;
    let mut started: Vec<Started> = Vec::new();
    for round in 0..rounds {
        started.push(upgrade(&site.home).await);
        clients.until_more().await;
        let to = if round % 2 == 0 { "green" } else { "blue" };
        let (code, said, message) = cli(&site.home.socket(), &["switch", to]).await;
        assert_eq!(code, 0, "{said}{message}");
        back(&site.home, site.proxy.pid()).await;
        clients.until_more().await;
        assert_eq!(site.proxy.service().await.active.as_str(), to);
    }
    // And for good.
    started.push(upgrade(&site.home).await);
    clients.until_more().await;
    let lost = clients.end(&format!("{} upgrades and {rounds} ways back", rounds + 1)).await;
    assert_eq!(lost, 0);
    let last = started.pop().unwrap();
    for ended in &started {
        ended.ended().await;
    }
    last.signal(Signal::TERM);
    last.ended().await;
}
