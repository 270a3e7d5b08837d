//! The WebSocket, frame by frame.

use std::net::SocketAddr;

use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uh_sample_app::websocket::FRAME_PAYLOAD_MAX;

use crate::support::{ClientBody, TestApp, connect, empty, request, within};

const FIN: u8 = 0x80;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

pub(crate) struct WebSocket(TokioIo<Upgraded>);

impl WebSocket {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let mut connection = connect(address).await;
        let answer = within("the handshake", connection.send_request(handshake())).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        // The key and its answer are the example of RFC 6455, 1.3.
        assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(answer.headers()["x-backend"], "green");
        Self(TokioIo::new(within("the upgrade", hyper::upgrade::on(answer)).await.unwrap()))
    }

    pub(crate) async fn echoes(&mut self, text: &str) {
        self.send(&frame(FIN | TEXT, text.as_bytes())).await;
        assert_eq!(self.receive().await, (FIN | TEXT, text.as_bytes().to_vec()));
    }

    async fn send(&mut self, bytes: &[u8]) {
        within("bytes to leave", self.0.write_all(bytes)).await.unwrap();
    }

    /// The first byte and the payload of the next frame, which must not be masked.
    async fn receive(&mut self) -> (u8, Vec<u8>) {
        within("a frame", async {
            let first = self.0.read_u8().await.unwrap();
            let length = match self.0.read_u8().await.unwrap() {
                126 => u64::from(self.0.read_u16().await.unwrap()),
                127 => self.0.read_u64().await.unwrap(),
                short => u64::from(short),
            };
            assert!(length <= FRAME_PAYLOAD_MAX);
            let mut payload = vec![0; length as usize];
            self.0.read_exact(&mut payload).await.unwrap();
            (first, payload)
        })
        .await
    }

    async fn ends_with_close(mut self, payload: &[u8]) {
        assert_eq!(self.receive().await, (FIN | CLOSE, payload.to_vec()));
        let mut rest = Vec::new();
        within("the end", self.0.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"");
    }
}

fn handshake() -> Request<ClientBody> {
    let mut request = request("GET", "/ws", empty());
    for (name, value) in [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    request
}

/// A masked frame, as from a client.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xFA, 0x21, 0x3D];
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

#[tokio::test]
async fn messages_of_every_size_class_come_back() {
    let app = TestApp::start(&[]).await;
    let mut socket = WebSocket::open(app.address).await;
    socket.echoes("hello").await;
    for length in [0, 125, 126, 65_535, 65_536] {
        let payload: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
        socket.send(&frame(FIN | BINARY, &payload)).await;
        assert!(socket.receive().await == (FIN | BINARY, payload), "{length}");
    }
}

#[tokio::test]
async fn a_frame_may_be_as_large_as_the_limit_and_no_larger() {
    let app = TestApp::start(&[]).await;
    let mut socket = WebSocket::open(app.address).await;
    let mut payload = vec![b'x'; FRAME_PAYLOAD_MAX as usize];
    socket.send(&frame(FIN | BINARY, &payload)).await;
    assert!(socket.receive().await == (FIN | BINARY, payload.clone()));
    payload.push(b'x');
    socket.send(&frame(FIN | BINARY, &payload)).await;
    socket.ends_with_close(&1009_u16.to_be_bytes()).await;
}

#[tokio::test]
async fn a_length_is_checked_before_the_payload_is_read() {
    let app = TestApp::start(&[]).await;
    let mut socket = WebSocket::open(app.address).await;
    socket.send(&[FIN | BINARY, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]).await;
    socket.ends_with_close(&1009_u16.to_be_bytes()).await;
}

#[tokio::test]
async fn a_frame_may_arrive_byte_by_byte() {
    let app = TestApp::start(&[]).await;
    let mut socket = WebSocket::open(app.address).await;
    for byte in frame(FIN | TEXT, b"dribble") {
        socket.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(socket.receive().await, (FIN | TEXT, b"dribble".to_vec()));
}

#[tokio::test]
async fn a_message_in_fragments_comes_back_with_pings_in_between() {
    let app = TestApp::start(&[]).await;
    let mut socket = WebSocket::open(app.address).await;
    socket.send(&frame(TEXT, b"to")).await;
    socket.send(&frame(FIN | PING, b"there?")).await;
    socket.send(&frame(FIN | PONG, b"unasked")).await;
    socket.send(&frame(FIN | CONTINUATION, b"gether")).await;
    assert_eq!(socket.receive().await, (TEXT, b"to".to_vec()));
    assert_eq!(socket.receive().await, (FIN | PONG, b"there?".to_vec()));
    assert_eq!(socket.receive().await, (FIN | CONTINUATION, b"gether".to_vec()));
}

#[tokio::test]
async fn a_close_is_answered_with_its_own_code() {
    let app = TestApp::start(&[]).await;
    let mut socket = WebSocket::open(app.address).await;
    socket.send(&frame(FIN | CLOSE, b"\x03\xE8bye")).await;
    socket.ends_with_close(b"\x03\xE8bye").await;
}

#[tokio::test]
async fn an_invalid_frame_closes_with_a_protocol_error() {
    let app = TestApp::start(&[]).await;
    for (rule, frames) in [
        ("unmasked", vec![FIN | TEXT, 2, b'h', b'i']),
        ("reserved bit", frame(FIN | 0x40 | TEXT, b"hi")),
        ("unknown opcode", frame(FIN | 0x3, b"hi")),
        ("ping in fragments", frame(PING, b"hi")),
        ("ping too long", frame(FIN | PING, &[0; 126])),
        ("nothing to continue", frame(FIN | CONTINUATION, b"hi")),
    ] {
        println!("{rule}");
        let mut socket = WebSocket::open(app.address).await;
        socket.send(&frames).await;
        socket.ends_with_close(&1002_u16.to_be_bytes()).await;
    }
}

#[tokio::test]
async fn an_invalid_handshake_is_rejected() {
    let app = TestApp::start(&[]).await;
    for (name, status) in [
        ("connection", StatusCode::UPGRADE_REQUIRED),
        ("upgrade", StatusCode::UPGRADE_REQUIRED),
        ("sec-websocket-version", StatusCode::UPGRADE_REQUIRED),
        ("sec-websocket-key", StatusCode::BAD_REQUEST),
    ] {
        let mut request = handshake();
        request.headers_mut().remove(name);
        assert_eq!(app.fetch(request).await.status, status, "without {name}");
    }
    let mut short_key = handshake();
    short_key.headers_mut().insert("sec-websocket-key", "c2hvcnQ=".parse().unwrap());
    assert_eq!(app.fetch(short_key).await.status, StatusCode::BAD_REQUEST);
}
