//! Endpoints that read a request body: one reports its size and hash, one echoes it. Neither stores it.

use std::fmt::Write;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::query::Query;
use crate::reply::{self, Body, Rejection};
use crate::routes::WAIT_MAX_MS;
use crate::server::App;

/// `/upload`: reads the whole body, pausing before each chunk on request, and returns its size and hash.
pub(crate) async fn upload(app: &App, request: Request<Incoming>) -> Result<Response<Body>, Rejection> {
    if !matches!(*request.method(), Method::POST | Method::PUT) {
        return Err(Rejection::new(StatusCode::METHOD_NOT_ALLOWED, "upload with POST or PUT")
            .with_header(ALLOW, "POST, PUT"));
    }
    let delay_ms = Query::of(request.uri()).number("read_delay_ms", 0..=WAIT_MAX_MS)?.unwrap_or(0);
    let mut body = request.into_body();
    let mut hash = Sha256::new();
    let mut bytes = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        let Some(frame) = body.frame().await else { break };
        let frame = frame.map_err(|error| Rejection::bad_request(format!("the body broke off: {error}")))?;
        if let Some(chunk) = frame.data_ref() {
            hash.update(chunk);
            bytes += chunk.len() as u64;
        }
    }
    let answer = json!({
        "bytes": bytes,
        "sha256": hex(&hash.finalize()),
        "backend": app.settings.backend.as_str(),
        "version": app.settings.version.as_str(),
    });
    Ok(reply::json(StatusCode::OK, &answer))
}

/// `/echo`: sends the body back as it arrives. The response starts before the body has ended, or even started.
pub(crate) fn echo(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let mut response = Response::new(body.boxed_unsync());
    if let Some(content_type) = head.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
    }
    response
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
