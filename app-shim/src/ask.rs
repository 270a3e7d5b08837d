//! `--check`: asks a running shim how it is, so that an image needs no other program for its health check.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// For each step. An answer may wait for the app's own, which has 1.5 s.
const STEP_TIMEOUT: Duration = Duration::from_millis(2_000);

/// More than any head and body of a health answer.
const ANSWER_MAX_BYTES: u64 = 16 << 10;

/// Whether the shim that listens at this address says that it is healthy; if not, why.
pub(crate) fn ask(listen: SocketAddr, path: &str) -> Result<(), String> {
    let address = reachable(listen);
    let answer = fetch(address, path).map_err(|error| format!("{address} does not answer: {error}"))?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => Err(format!("{address} is not healthy: {}", answer.lines().last().unwrap_or_default())),
    }
}

fn fetch(address: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, STEP_TIMEOUT)?;
    stream.set_read_timeout(Some(STEP_TIMEOUT))?;
    stream.set_write_timeout(Some(STEP_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX_BYTES).read_to_end(&mut answer)?;
    Ok(answer)
}

/// Who listens everywhere is reached at home.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
