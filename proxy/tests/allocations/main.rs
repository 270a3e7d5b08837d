//! Allocations on the request path. Unlike time, they are the same on every machine and under any load, so a test can
//! check them: the whole proxy runs in this process, over real sockets, under a counting allocator. A path that grows
//! by more than a twentieth fails; one that shrinks is a figure to record.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test, helpers too may fail by panicking")]

mod http2;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use http2::Http2Caller;
use uh_protocol::client::Client;
use uh_proxy::config;
use uh_proxy::run::{Start, TakeOver};
use uh_proxy::systemd::Inherited;
use uh_testkit::uh_proxy::Setup;
use uh_testkit::wait::{SOON, until_blocking};

#[global_allocator]
static COUNTING: dhat::Alloc = dhat::Alloc;

/// Requests before counting, to fill pools and buffers.
const WARM_UP: u64 = 300;

/// Counted requests. Periodic work (a log flush ten times a second) is negligible among them.
const COUNTED: u64 = 1000;

/// How many times to count. Periodic work can only add, so the minimum is the request's own count.
const ROUNDS: usize = 3;

/// The allowed growth.
const GROWTH: f64 = 1.05;

/// One kind of request, and its recorded cost.
struct Case {
    name: &'static str,
    request: Vec<u8>,
    answer_body: usize,
    reuse: bool,
    recorded: f64,
}

fn cases() -> Vec<Case> {
    let get = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: app.example.com\r\nUser-Agent: guard\r\nAccept: */*\r\n\
             Accept-Encoding: gzip\r\n\r\n"
        )
        .into_bytes()
    };
    let mut post = b"POST /0 HTTP/1.1\r\nHost: app.example.com\r\nContent-Length: 20000\r\n\r\n".to_vec();
    post.resize(post.len() + 20_000, b'x');
    vec![
        Case { name: "GET", request: get("/100"), answer_body: 100, reuse: true, recorded: 1.01 },
        Case {
            name: "GET of 200 kB",
            request: get("/200000"),
            answer_body: 200_000,
            reuse: true,
            recorded: 1.01,
        },
        Case { name: "POST of 20 kB", request: post, answer_body: 0, reuse: true, recorded: 1.01 },
        Case {
            name: "GET with a path rule and edited headers",
            request: get("/150"),
            answer_body: 150,
            reuse: true,
            recorded: 1.01,
        },
        Case {
            name: "GET with a rate limit",
            request: get("/160"),
            answer_body: 160,
            reuse: true,
            recorded: 1.01,
        },
        Case {
            name: "GET on a new connection",
            request: get("/100"),
            answer_body: 100,
            reuse: false,
            recorded: 6.01,
        },
    ]
}

/// The same over HTTP/2: so many requests at a time on one connection.
struct StreamCase {
    name: &'static str,
    streams: u64,
    recorded: f64,
}

const STREAM_CASES: [StreamCase; 2] = [
    StreamCase { name: "HTTP/2, a stream at a time", streams: 1, recorded: 7.04 },
    StreamCase { name: "HTTP/2, ten streams at a time", streams: 10, recorded: 7.04 },
];

/// What a browser sends.
const FIELDS: [(&str, &str); 7] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/100"),
    (":authority", "app.example.com"),
    ("user-agent", "guard"),
    ("accept", "*/*"),
    ("accept-encoding", "gzip"),
];

#[test]
fn a_request_allocates_no_more_than_recorded() {
    let profiler = dhat::Profiler::builder().testing().build();
    let dir = tempfile::Builder::new().prefix("uh-proxy-test-").tempdir().unwrap();
    let [plain, http2] = front_door(dir.path(), backend());
    let mut faults = Vec::new();
    for case in cases() {
        let mut client = Caller::new(plain, &case);
        let counted = count(|times| client.call(times));
        faults.extend(judge(case.name, case.recorded, counted));
    }
    for case in STREAM_CASES {
        let mut client = Http2Caller::new(http2, &FIELDS);
        let counted = count(|times| (0..times / case.streams).for_each(|_| client.call(case.streams)));
        faults.extend(judge(case.name, case.recorded, counted));
    }
    drop(profiler);
    assert!(faults.is_empty(), "more than recorded:\n{}", faults.join("\n"));
}

/// What is wrong with what was counted.
fn judge(name: &str, recorded: f64, (blocks, bytes): (f64, f64)) -> Option<String> {
    let line =
        format!("{name}: {blocks:.2} allocations, {bytes:.0} bytes a request; recorded: {recorded:.2}");
    #[allow(clippy::print_stdout, reason = "the figures to record")]
    {
        println!("{line}");
    }
    (blocks > recorded * GROWTH).then_some(line)
}

/// Allocations and bytes per request, the fewest of all rounds. `call` sends so many requests.
fn count(mut call: impl FnMut(u64)) -> (f64, f64) {
    call(WARM_UP);
    let round = |_| {
        let before = dhat::HeapStats::get();
        call(COUNTED);
        let after = dhat::HeapStats::get();
        let each = |after: u64, before: u64| (after - before) as f64 / COUNTED as f64;
        (each(after.total_blocks, before.total_blocks), each(after.total_bytes, before.total_bytes))
    };
    (0..ROUNDS).map(round).min_by(|(one, _), (other, _)| one.total_cmp(other)).unwrap()
}

/// A client that doesn't allocate between its calls.
struct Caller<'a> {
    address: SocketAddr,
    case: &'a Case,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl<'a> Caller<'a> {
    fn new(address: SocketAddr, case: &'a Case) -> Self {
        Self { address, case, stream: None, buffer: vec![0; 64 << 10] }
    }

    fn call(&mut self, times: u64) {
        for _ in 0..times {
            let stream = self.stream.get_or_insert_with(|| connect(self.address));
            stream.write_all(&self.case.request).unwrap();
            let (mut held, mut whole) = (0, None);
            while whole.is_none_or(|whole| held < whole) {
                // After the head, only the number of bytes matters.
                let at = if whole.is_none() { held } else { 0 };
                let read = stream.read(&mut self.buffer[at..]).unwrap();
                assert!(read > 0, "uh-proxy closed the connection");
                held += read;
                if whole.is_none() {
                    whole = head_end(&self.buffer[..held]).map(|end| end + self.case.answer_body);
                }
            }
            assert!(self.buffer.starts_with(b"HTTP/1.1 200 ") || held > self.buffer.len(), "a bad answer");
            assert_eq!(Some(held), whole);
            if !self.case.reuse {
                self.stream = None;
            }
        }
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// A backend that answers `/N` with N bytes, and allocates only when it accepts.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || serve(stream));
        }
    });
    address
}

fn serve(mut stream: TcpStream) {
    let (mut buffer, mut out) = (vec![0; 64 << 10], Vec::with_capacity(256 << 10));
    let mut held = 0;
    loop {
        let Ok(read @ 1..) = stream.read(&mut buffer[held..]) else { return };
        held += read;
        let Some(end) = head_end(&buffer[..held]) else { continue };
        let head = std::str::from_utf8(&buffer[..end]).unwrap();
        let announced = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let body: usize = announced.map_or(0, |length| length.parse().unwrap());
        let size: usize = head.split(' ').nth(1).unwrap().strip_prefix('/').unwrap().parse().unwrap();
        while held < end + body {
            let read = stream.read(&mut buffer[held..]).unwrap();
            assert!(read > 0);
            held += read;
        }
        held = 0;
        out.clear();
        write!(out, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {size}\r\n\r\n").unwrap();
        out.resize(out.len() + size, b'x');
        if stream.write_all(&out).is_err() {
            return;
        }
    }
}

/// With rules that most requests are compared with in vain, and one for a path.
const SERVICE: &str = "\
response_headers = { set = { X-Frame-Options = \"DENY\" }, remove = [\"X-Powered-By\"] }
[services.app.health]
enabled = false
[[services.app.paths]]
match = [\"/admin\", \"/internal\"]
allow = [\"10.0.0.0/8\"]
[[services.app.paths]]
suffixes = [\".js\", \".css\"]
timeouts = { read = \"5s\" }
[[services.app.paths]]
match = \"/160\"
rate = { per_second = 10000, burst = 100000 }
[[services.app.paths]]
match = \"/150\"
response_headers = { set = { Content-Type = \"text/html\" }, default = { Cache-Control = \"no-cache\" } }
request_headers = { set = { X-Api-Key = \"0123456789\" }, remove = [\"Accept-Encoding\"] }
";

/// Runs uh-proxy in this process, with all features on, and returns its addresses for HTTP/1.1 and HTTP/2.
fn front_door(dir: &Path, backend: SocketAddr) -> [SocketAddr; 2] {
    let setup = Setup::new(dir, backend, backend).server("threads = 1\nlisten_h2c = [\"127.0.0.1:0\"]");
    let setup = setup.service(SERVICE);
    let (path, text) = (setup.config_file(), setup.config());
    let config = config::parse(&text).unwrap();
    let (inherited, take_over) = (Inherited::default(), TakeOver::Never);
    let start = Start { path, text, config, inherited, take_over, program: std::env::current_exe().unwrap() };
    thread::spawn(move || uh_proxy::run::run(start, None).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = Client::new(setup.socket());
    let status = until_blocking("uh-proxy answers", || runtime.block_on(client.status()).ok()).unwrap();
    [&status.proxy.listen, &status.proxy.listen_h2c].map(|addresses| addresses[0].parse().unwrap())
}
