//! `--check`: asks a running shim whether it is healthy, so that an image needs no other program for its health
//! check.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Time limit for the whole answer. The shim may wait up to 1.5 s for the app's own.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(2_000);

/// Larger than any health answer.
const ANSWER_MAX_BYTES: usize = 16 << 10;

/// Asks the shim that listens on this address. `Err` says why it isn't healthy.
pub(crate) fn check(listen: SocketAddr, path: &str) -> Result<(), String> {
    let address = reachable(listen);
    let answer = fetch(address, path).map_err(|error| format!("{address} doesn't answer: {error}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).unwrap_or_default();
    if is_success(status) {
        return Ok(());
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    // With `--health app` the body is the app's own and may be chunked: its longest line is the content.
    let said = body.lines().max_by_key(|line| line.len()).unwrap_or_default().trim();
    let status = head.lines().next().and_then(|line| line.split_once(' ')).map_or(head, |(_, status)| status);
    Err(format!("{address} is unhealthy: {status}{}{said}", if said.is_empty() { "" } else { ": " }))
}

fn is_success(status: &str) -> bool {
    status.len() == 3 && status.starts_with('2')
}

/// Reads the answer: only the head of a success, otherwise also as much of the body as arrives in time.
fn fetch(address: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    while answer.len() < ANSWER_MAX_BYTES {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        let head_is_complete = answer.windows(4).any(|end| end == b"\r\n\r\n");
        match stream.read(&mut chunk) {
            Ok(0) if head_is_complete => break,
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => answer.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The body may never end; the head is enough.
            Err(_) if head_is_complete => break,
            Err(error) => return Err(error),
        }
        let status = answer.get(9..12).and_then(|status| std::str::from_utf8(status).ok());
        if status.is_some_and(is_success) && answer.windows(4).any(|end| end == b"\r\n\r\n") {
            break;
        }
    }
    Ok(answer)
}

/// A shim that listens on all addresses is reached over loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
