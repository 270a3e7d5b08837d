//! The kinds of responses: a whole body, one that is produced while it is read, or a rejection.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Frame};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::Value;
use tokio::sync::mpsc;

/// The body of every response. Its error is that of an echoed request body.
pub(crate) type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// A rejected request, with the reason as the body of the response.
#[derive(Debug)]
pub(crate) struct Rejection {
    status: StatusCode,
    reason: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Rejection {
    pub(crate) fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), headers: Vec::new() }
    }

    pub(crate) fn bad_request(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    /// Adds a header that says what would have been accepted.
    pub(crate) fn with_header(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        let mut response = text(self.status, format!("{}\n", self.reason));
        response.headers_mut().extend(self.headers);
        response
    }
}

pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    response(status, "text/plain; charset=utf-8", whole(body))
}

pub(crate) fn json(status: StatusCode, value: &Value) -> Response<Body> {
    response(status, "application/json", whole(value.to_string()))
}

pub(crate) fn response(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A response without a body and content type.
pub(crate) fn bare(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(never).boxed_unsync());
    *response.status_mut() = status;
    response
}

/// A body that an async function writes chunk by chunk as the client reads it. It runs inside the body rather than in
/// its own task, so it ends with the connection and is never more than one chunk ahead.
pub(crate) fn produced<F>(produce: impl FnOnce(mpsc::Sender<Bytes>) -> F) -> Body
where
    F: Future<Output = ()> + Send + 'static,
{
    let (writer, chunks) = mpsc::channel(1);
    Produced { chunks, producer: Some(Box::pin(produce(writer))) }.map_err(never).boxed_unsync()
}

struct Produced {
    chunks: mpsc::Receiver<Bytes>,
    producer: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl hyper::body::Body for Produced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.producer.as_mut().is_some_and(|producer| producer.as_mut().poll(cx).is_ready()) {
            // Dropping it drops its writer, which ends `chunks`.
            this.producer = None;
        }
        this.chunks.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}

fn whole(body: impl Into<Bytes>) -> Body {
    whole_body(Full::new(body.into()))
}

/// Converts a complete body.
pub(crate) fn whole_body(body: Full<Bytes>) -> Body {
    body.map_err(never).boxed_unsync()
}

fn never(error: Infallible) -> hyper::Error {
    match error {}
}
