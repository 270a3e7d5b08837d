//! Raw calls of uh-proxy's admin socket.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::wait::SOON;

/// One of each.
pub const CALLS: &[(&str, &str)] = &[
    ("GET /v1/status", ""),
    ("POST /v1/services/app/switch", r#"{"to":"green","expect_active":"blue"}"#),
    ("POST /v1/services/app/switch", r#"{"to":"blue","force":true}"#),
    ("POST /v1/services/app/backends/blue/drain", r#"{"timeout_ms":10,"cut":false}"#),
    ("PUT /v1/services/app/backends/green", r#"{"endpoints":["127.0.0.1:9"],"version":"1.0.1"}"#),
    ("POST /v1/services/app/maintenance", r#"{"on":true,"message":"x","retry_after_s":10}"#),
    ("POST /v1/reload", ""),
    ("GET /metrics", ""),
];

/// A call of the admin socket as it is sent.
#[must_use]
pub fn call(call: &str, body: &str) -> String {
    format!("{call} HTTP/1.1\r\nHost: uh\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// The same call with the length that its body has. A change to a body usually breaks the framing, and then the body
/// isn't read.
fn with_right_length(call: &[u8]) -> Option<Vec<u8>> {
    const NAME: &[u8] = b"Content-Length: ";
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|window| window == what);
    let body = find(call, b"\r\n\r\n")? + 4;
    let value = find(&call[..body], NAME)? + NAME.len();
    let rest = value + find(&call[value..], b"\r\n")?;
    let length = (call.len() - body).to_string();
    let right = [&call[..value], length.as_bytes(), &call[rest..]].concat();
    (right != call).then_some(right)
}

/// Sends these bytes, and then with the length that their body has. Each must be answered properly.
///
/// # Errors
/// What is wrong with an answer.
pub fn ask(socket: &Path, bytes: &[u8]) -> Result<(), String> {
    ask_once(socket, bytes)?;
    with_right_length(bytes).map_or(Ok(()), |right| ask_once(socket, &right))
}

fn ask_once(socket: &Path, bytes: &[u8]) -> Result<(), String> {
    let mut stream = UnixStream::connect(socket).map_err(|e| format!("no connection: {e}"))?;
    stream.set_read_timeout(Some(SOON)).map_err(|e| e.to_string())?;
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut reply = Vec::new();
    if stream.read_to_end(&mut reply).is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
        return Err("it neither responds nor closes".to_owned());
    }
    of_answer(&reply)
}

/// The admin socket answers with a known status, and without terminal control characters.
fn of_answer(reply: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(reply);
    let text = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&text);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        // A client that closes its side has left, for hyper, and may get no answer.
        return if text.is_empty() { Ok(()) } else { Err(format!("half a reply: {text}")) };
    };
    let status = head.split(' ').nth(1).unwrap_or_default();
    if !["200", "400", "403", "404", "405", "409", "413", "414", "417", "422", "431", "503", "505"]
        .contains(&status)
    {
        return Err(format!("status {status}: {text}"));
    }
    // JSON, or the metrics text.
    if body.chars().any(|c| c < ' ' && c != '\n') {
        return Err(format!("a control character in {body:?}"));
    }
    Ok(())
}
