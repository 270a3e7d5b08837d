//! Requests through the shim.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::shim::{Shim, within};

/// One exchange on a connection of its own, read to its end.
pub(crate) async fn exchange(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = within("a connection", TcpStream::connect(address)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within("the answer", stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

pub(crate) async fn get(address: std::net::SocketAddr, path: &str) -> String {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn a_request_reaches_the_app_and_its_answer_the_client() {
    let (_shim, address) = Shim::serving(&[]).await;
    let answer = get(address, "/").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\ngreen 1.2.3\n"),
        "{answer}"
    );
    let seen = get(address, "/headers?a=%20b").await;
    assert!(
        seen.contains(r#""target":"/headers?a=%20b""#) && seen.contains(r#"["host","a.test"]"#),
        "{seen}"
    );
}

#[tokio::test]
async fn health_is_in_the_form_of_the_guide() {
    let (_shim, address) = Shim::serving(&[]).await;
    let answer = get(address, "/api/health").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains(r#""status":"healthy""#) && answer.contains(r#""in_flight":0"#), "{answer}");
}
