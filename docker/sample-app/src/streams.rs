//! Long responses: server-sent events, and downloads of any size. Neither needs memory in proportion.

use std::time::Duration;

use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, HeaderValue};
use hyper::{Request, Response, StatusCode};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::query::{self, Query};
use crate::reply::{self, Body, Rejection};
use crate::routes::{WAIT_MAX_MS, identity};
use crate::server::App;

/// The most events a client may request; 0 is endless.
const EVENTS_MAX: u64 = 1_000_000;
const EVENTS_DEFAULT: u64 = 10;
const INTERVAL_DEFAULT_MS: u64 = 100;

/// The largest download, 64 GiB: hours of traffic, and far from where byte counts overflow.
const BYTES_MAX: u64 = 64 << 30;
/// The highest rate that can be requested; without a rate it is faster.
const RATE_MAX_BYTES_PER_S: u64 = 1 << 40;
/// How many chunks a paced download sends per second, so that it flows evenly.
const CHUNKS_PER_S: u64 = 20;
/// The largest chunk.
const CHUNK_MAX: usize = 64 * 1024;
/// The length of the pattern. A prime, so that a lost, doubled or moved piece of any common size is detected.
const PERIOD: usize = 251;

/// `/stream`: events numbered from 0, each sent when it is due.
pub(crate) fn events(app: &App, request: &Request<Incoming>) -> Result<Response<Body>, Rejection> {
    let query = Query::of(request.uri());
    let count = match query.number("events", 0..=EVENTS_MAX)?.unwrap_or(EVENTS_DEFAULT) {
        0 => u64::MAX,
        count => count,
    };
    let interval_ms = query.number("interval_ms", 0..=WAIT_MAX_MS)?.unwrap_or(INTERVAL_DEFAULT_MS);
    let interval = Duration::from_millis(interval_ms);
    let identity = identity(app);

    let body = reply::produced(|writer| async move {
        for index in 0..count {
            if index > 0 {
                tokio::time::sleep(interval).await;
            }
            if writer.send(Bytes::from(format!("data: {identity} {index}\n\n"))).await.is_err() {
                return;
            }
        }
    });
    let mut response = reply::response(StatusCode::OK, "text/event-stream", body);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// `/bytes/{n}`: byte `i` of the response is `i % 251`.
pub(crate) fn bytes(count: &str, request: &Request<Incoming>) -> Result<Response<Body>, Rejection> {
    let count = query::number("the number of bytes", count, 0..=BYTES_MAX)?;
    let query = Query::of(request.uri());
    let chunked = query.number("chunked", 0..=1)? == Some(1);
    let rate = query.number("rate", 1..=RATE_MAX_BYTES_PER_S)?;

    let body = reply::produced(move |writer| send_pattern(writer, count, rate));
    let mut response = reply::response(StatusCode::OK, "application/octet-stream", body);
    if !chunked {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(count));
    }
    Ok(response)
}

/// How long what was sent of an answer that is cut has to leave, before hyper drops the connection with what it still holds.
const CUT_AFTER: Duration = Duration::from_millis(20);

/// An answer that announces a thousand bytes and ends after ten.
pub(crate) fn cut() -> Response<Body> {
    let body = reply::produced(|writer| async move {
        send_pattern(writer.clone(), 10, None).await;
        tokio::time::sleep(CUT_AFTER).await;
        drop(writer);
    });
    let mut response = reply::response(StatusCode::OK, "application/octet-stream", body);
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("1000"));
    response
}

/// Sends `count` bytes. With a rate, a chunk leaves when its last byte is due, so the whole takes `count / rate`.
async fn send_pattern(writer: mpsc::Sender<Bytes>, count: u64, rate: Option<u64>) {
    let started_at = Instant::now();
    let chunk_max = rate.map_or(CHUNK_MAX as u64, |rate| (rate / CHUNKS_PER_S).clamp(1, CHUNK_MAX as u64));
    let mut sent = 0;
    while sent < count {
        let length = chunk_max.min(count - sent);
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64((sent + length) as f64 / rate as f64);
            tokio::time::sleep_until(started_at + due).await;
        }
        let chunk = pattern((sent % PERIOD as u64) as usize, length as usize);
        if writer.send(chunk).await.is_err() {
            return;
        }
        sent += length;
    }
}

/// A piece of the pattern, without copying it. `phase` is below [`PERIOD`], `length` at most [`CHUNK_MAX`].
fn pattern(phase: usize, length: usize) -> Bytes {
    static PATTERN: [u8; PERIOD + CHUNK_MAX] = {
        let mut pattern = [0; PERIOD + CHUNK_MAX];
        let mut index = 0;
        while index < pattern.len() {
            pattern[index] = (index % PERIOD) as u8;
            index += 1;
        }
        pattern
    };
    Bytes::from_static(&PATTERN).slice(phase..phase + length)
}
