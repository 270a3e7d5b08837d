//! A stand-in for a Next.js app, which knows the server actions of its own build.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Scripted, Then};

/// What Next.js says of an action that it doesn't know. It says so before it has read the body.
const UNKNOWN: &str = "HTTP/1.1 404 Not Found\r\nx-nextjs-action-not-found: 1\r\nContent-Length: 24\r\n\r\nServer action not found.";

/// An app that has the pages below `/page`, and executes the actions whose IDs begin with its name. The end of the ID says what happens to them.
pub(crate) struct App {
    pub(crate) app: Scripted,
    /// The actions that it has executed, with their bodies.
    executed: Arc<Mutex<Vec<(String, Vec<u8>)>>>,
}

impl App {
    pub(crate) async fn start(name: &'static str) -> Self {
        let executed = Arc::<Mutex<Vec<(String, Vec<u8>)>>>::default();
        let into = Arc::clone(&executed);
        let app = Scripted::start(move |head, stream| answer(name, head, stream, Arc::clone(&into))).await;
        Self { app, executed }
    }

    /// What was executed since the last call.
    pub(crate) fn executed(&self) -> Vec<(String, Vec<u8>)> {
        std::mem::take(&mut self.executed.lock())
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}

async fn answer(
    name: &'static str,
    head: String,
    mut stream: TcpStream,
    executed: Arc<Mutex<Vec<(String, Vec<u8>)>>>,
) -> (TcpStream, Then) {
    let action = field(&head, "next-action").unwrap_or_default().to_owned();
    let says = |status: &str, text: &str| {
        format!("HTTP/1.1 {status}\r\nX-Of: {name}\r\nContent-Length: {}\r\n\r\n{text}", text.len())
    };
    let known = action.starts_with(name);
    if !known && !action.is_empty() && !action.ends_with("-plain-404") {
        if name == "blue" && action.ends_with("-hint") {
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await.unwrap();
        }
        stream.write_all(UNKNOWN.as_bytes()).await.unwrap();
        let _ = body(&head, &mut stream).await;
        return (stream, Then::KeepAlive);
    }
    let Some(body) = body(&head, &mut stream).await else { return (stream, Then::Close) };
    if known {
        executed.lock().push((action.clone(), body.clone()));
    }
    let response = match action.rsplit('-').next().unwrap_or_default() {
        _ if head.contains(" /page") => says("200 OK", "a page"),
        _ if !known => says("404 Not Found", "no such page"),
        "hang" => std::future::pending().await,
        "close" => return (stream, Then::Close),
        "fail" => says("500 Internal Server Error", "failed"),
        "redirect" => says("303 See Other", "moved"),
        _ => says("200 OK", &format!("{} bytes", body.len())),
    };
    stream.write_all(response.as_bytes()).await.unwrap();
    (stream, Then::KeepAlive)
}

/// Reads the body, without the framing of its chunks. `None`: it broke off.
async fn body(head: &str, stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if field(head, "transfer-encoding").is_none() {
        body.resize(field(head, "content-length").map_or(0, |length| length.parse().unwrap()), 0);
        stream.read_exact(&mut body).await.ok()?;
        return Some(body);
    }
    loop {
        let mut line = String::new();
        while !line.ends_with("\r\n") {
            line.push(char::from(stream.read_u8().await.ok()?));
        }
        let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).await.ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(&chunk[..size]);
    }
}
