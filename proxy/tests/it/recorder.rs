//! A backend that writes down every request it gets, byte for byte, and answers as it is told. It reads requests by
//! rules of its own, and takes anything it can't read for a failure of the front door.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A request as the backend saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Its head, with `|` for each line end but the last two. A request id that the front door made is `*`.
    pub(crate) head: String,
    /// Its body as it came, chunks and all.
    pub(crate) body: String,
    /// Whether it was there to the last byte.
    pub(crate) complete: bool,
}

/// What the backend does after it has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Keep,
    Close,
    Reset,
}

/// What the backend answers to a request with this target.
pub(crate) type Script = fn(target: &str) -> (Vec<u8>, End);

pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nDate: then\r\nContent-Length: 2\r\n\r\nok";

pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Recorder {
    pub(crate) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let into = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(BufReader::new(stream), Arc::clone(&into), script));
            }
        });
        Self { address, seen }
    }

    /// What was seen since the last call.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock())
    }
}

async fn serve(mut stream: BufReader<TcpStream>, seen: Arc<Mutex<Vec<Seen>>>, script: Script) {
    while let Some(head) = read_head(&mut stream).await {
        if head.starts_with("GET /api/health ") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
            continue;
        }
        let mut body = Vec::new();
        let complete = read_body(&head, &mut stream, &mut body).await;
        seen.lock().push(Seen {
            head: normalised(&head),
            body: String::from_utf8_lossy(&body).into_owned(),
            complete,
        });
        if !complete {
            return;
        }
        let target = head.split(' ').nth(1).unwrap_or_default();
        let (answer, end) = script(target);
        let _ = stream.write_all(&answer).await;
        match end {
            End::Keep => {}
            End::Close => return,
            End::Reset => {
                // The bytes before it must have been read, or the reset would take them away too.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let _ = socket2::SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO));
                return;
            }
        }
    }
}

async fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Reads a body; whether it is complete.
async fn read_body(head: &str, stream: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> bool {
    let values = |wanted: &str| {
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        fields
            .filter(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value)
            .collect::<Vec<_>>()
    };
    match (values("content-length").as_slice(), values("transfer-encoding").as_slice()) {
        ([], []) => true,
        ([length], []) => take(stream, length.parse().expect("a length"), body).await,
        ([], ["chunked"]) => read_chunks(stream, body).await,
        ambiguous => panic!("an ambiguous request has come through: {ambiguous:?} in {head}"),
    }
}

async fn read_chunks(stream: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> bool {
    loop {
        let Some(line) = read_line(stream, body).await else { return false };
        let size = line.split(';').next().unwrap_or_default().trim_end();
        let size = usize::from_str_radix(size, 16).expect("a chunk size");
        if size == 0 {
            while let Some(trailer) = read_line(stream, body).await {
                if trailer.is_empty() {
                    return true;
                }
            }
            return false;
        }
        if !take(stream, size + 2, body).await {
            return false;
        }
        assert!(body.ends_with(b"\r\n"), "a chunk that does not end");
    }
}

async fn read_line(stream: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> Option<String> {
    let start = body.len();
    while !body[start..].ends_with(b"\r\n") {
        body.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&body[start..body.len() - 2]).into_owned())
}

async fn take(stream: &mut BufReader<TcpStream>, length: usize, body: &mut Vec<u8>) -> bool {
    for _ in 0..length {
        match stream.read_u8().await {
            Ok(byte) => body.push(byte),
            Err(_) => return false,
        }
    }
    true
}

fn normalised(head: &str) -> String {
    let line = |line: &str| match line.strip_prefix("X-Request-Id: ") {
        Some(id) if id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) => {
            "X-Request-Id: *".to_owned()
        }
        _ => line.to_owned(),
    };
    head.trim_end_matches("\r\n").split("\r\n").map(line).collect::<Vec<_>>().join("|")
}
