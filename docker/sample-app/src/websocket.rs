//! `/ws`: a WebSocket echo server (RFC 6455).
//!
//! Frames are echoed one by one, so a fragmented message comes back in the same fragments, and memory is bounded by
//! one frame, whose length is checked first. Text isn't checked for UTF-8. There are no extensions and no
//! subprotocols. A drain doesn't end a tunnel: it may continue until the deadline.

use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::note;
use crate::reply::{self, Body, Rejection};
use crate::server::App;

/// The largest payload of one frame. Larger ones are rejected with close code 1009.
pub const FRAME_PAYLOAD_MAX: u64 = 1 << 20;
/// The largest payload of a ping, pong or close (RFC 6455, 5.5).
const CONTROL_PAYLOAD_MAX: u64 = 125;
/// How long to wait, after sending a close frame, for the client to close, so that it can read the frame.
const HANG_UP_WAIT: Duration = Duration::from_secs(1);

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// Switches the connection to a WebSocket and echoes on it in a separate task.
pub(crate) fn upgrade(app: &App, mut request: Request<Incoming>) -> Result<Response<Body>, Rejection> {
    let accept = accept(request.method(), request.headers())?;
    let upgraded = hyper::upgrade::on(&mut request);
    let tunnel = app.drain.begin_tunnel();
    tokio::spawn(async move {
        let _tunnel = tunnel;
        let echoed = match upgraded.await {
            Ok(stream) => echo(&mut TokioIo::new(stream)).await,
            Err(error) => Err(io::Error::other(error)),
        };
        if let Err(error) = echoed {
            note(format_args!("a tunnel ended early: {error}"));
        }
    });

    let mut response = reply::bare(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// Checks the opening handshake (RFC 6455, 4.2.1) and returns the accept value.
fn accept(method: &Method, headers: &HeaderMap) -> Result<HeaderValue, Rejection> {
    let has = |name, token: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    if method != Method::GET || !has(CONNECTION, "upgrade") || !has(UPGRADE, "websocket") {
        return Err(Rejection::new(StatusCode::UPGRADE_REQUIRED, "this endpoint is a WebSocket")
            .with_header(CONNECTION, "Upgrade")
            .with_header(UPGRADE, "websocket"));
    }
    if !has(SEC_WEBSOCKET_VERSION, "13") {
        return Err(Rejection::new(StatusCode::UPGRADE_REQUIRED, "only WebSocket version 13 is supported")
            .with_header(SEC_WEBSOCKET_VERSION, "13"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    if BASE64.decode(key).map_or(true, |nonce| nonce.len() != 16) {
        return Err(Rejection::bad_request("sec-websocket-key must be 16 bytes in base64"));
    }
    let digest =
        Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    HeaderValue::try_from(BASE64.encode(digest))
        .map_err(|error| Rejection::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xA,
}

impl Opcode {
    fn parse(bits: u8) -> Option<Self> {
        use Opcode::{Binary, Close, Continuation, Ping, Pong, Text};
        [Continuation, Text, Binary, Close, Ping, Pong].into_iter().find(|opcode| *opcode as u8 == bits)
    }
}

struct FrameHead {
    opcode: Opcode,
    fin: bool,
    length: u64,
    mask: [u8; 4],
}

/// Why the server closes, with the code it sends (RFC 6455, 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Violation {
    Protocol = 1002,
    TooBig = 1009,
}

/// Echoes until a close, a violation or the end of the stream between two frames; an end inside a frame is an error.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    let mut inside_message = false;
    while let Some(first) = read_first_byte(stream).await? {
        let head = match read_head(stream, first, inside_message).await? {
            Ok(head) => head,
            Err(violation) => {
                write_frame(stream, Opcode::Close, true, &(violation as u16).to_be_bytes()).await?;
                return hang_up(stream).await;
            }
        };
        // The limit was checked with the head, so this is at most `FRAME_PAYLOAD_MAX`.
        let mut payload = vec![0; head.length as usize];
        stream.read_exact(&mut payload).await?;
        payload.iter_mut().zip(head.mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        match head.opcode {
            Opcode::Continuation | Opcode::Text | Opcode::Binary => {
                inside_message = !head.fin;
                write_frame(stream, head.opcode, head.fin, &payload).await?;
            }
            Opcode::Ping => write_frame(stream, Opcode::Pong, true, &payload).await?,
            Opcode::Pong => {}
            Opcode::Close => {
                write_frame(stream, Opcode::Close, true, &payload).await?;
                return hang_up(stream).await;
            }
        }
    }
    Ok(())
}

async fn read_first_byte<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<u8>> {
    let mut first = [0];
    let count = stream.read(&mut first).await?;
    Ok((count == 1).then_some(first[0]))
}

/// Reads the rest of a frame's head and validates it.
async fn read_head<S: AsyncRead + Unpin>(
    stream: &mut S,
    first: u8,
    inside_message: bool,
) -> io::Result<Result<FrameHead, Violation>> {
    let second = stream.read_u8().await?;
    let length = match second & !MASKED {
        126 => u64::from(stream.read_u16().await?),
        127 => stream.read_u64().await?,
        short => u64::from(short),
    };
    let fin = first & FIN != 0;
    // The other bits next to the opcode, except FIN, are reserved for extensions, which aren't supported.
    let Some(opcode) = Opcode::parse(first & !FIN) else { return Ok(Err(Violation::Protocol)) };
    let in_order = match opcode {
        Opcode::Continuation => inside_message,
        Opcode::Text | Opcode::Binary => !inside_message,
        Opcode::Close | Opcode::Ping | Opcode::Pong => fin && length <= CONTROL_PAYLOAD_MAX,
    };
    if !in_order || second & MASKED == 0 {
        return Ok(Err(Violation::Protocol));
    }
    if length > FRAME_PAYLOAD_MAX {
        return Ok(Err(Violation::TooBig));
    }
    let mut mask = [0; 4];
    stream.read_exact(&mut mask).await?;
    Ok(Ok(FrameHead { opcode, fin, length, mask }))
}

/// Writes one frame, unmasked as a server must.
async fn write_frame<S: AsyncWrite + Unpin>(
    stream: &mut S,
    opcode: Opcode,
    fin: bool,
    payload: &[u8],
) -> io::Result<()> {
    let mut frame = Vec::with_capacity(10 + payload.len());
    frame.push(opcode as u8 | if fin { FIN } else { 0 });
    match payload.len() {
        length @ 0..=125 => frame.push(length as u8),
        length @ 126..=0xFFFF => {
            frame.push(126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    stream.write_all(&frame).await?;
    stream.flush().await
}

/// Shuts down our side and reads until the client closes: closing with unread bytes would reset the connection, and
/// the close frame could be lost.
async fn hang_up<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    stream.shutdown().await?;
    // A client that doesn't close in time is cut off.
    let _ = tokio::time::timeout(HANG_UP_WAIT, tokio::io::copy(stream, &mut tokio::io::sink())).await;
    Ok(())
}
