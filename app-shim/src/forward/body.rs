//! Bodies being forwarded. Neither kind buffers more than the current chunk.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body_util::Full;
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};

use super::expect::{BodyGate, Opening};
use super::upstream::BorrowedConnection;
use crate::metrics::ShimMetrics;

/// A client's body on its way to the app.
pub(super) struct RequestBody {
    body: Option<Incoming>,
    /// While it is closed, nothing is read: the first read makes hyper send `100 Continue` to the client.
    gate: Option<Opening>,
}

impl RequestBody {
    pub(super) fn new(body: Incoming, gate: Option<BodyGate>) -> Self {
        Self { body: Some(body), gate: gate.map(BodyGate::opening) }
    }

    pub(super) fn empty() -> Self {
        Self { body: None, gate: None }
    }
}

impl hyper::body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if let Some(gate) = &mut this.gate {
            std::task::ready!(gate.as_mut().poll(cx));
            this.gate = None;
        }
        this.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Incoming::size_hint)
    }
}

/// The body of a response.
pub(crate) struct Body(BodySource);

enum BodySource {
    Whole(Full<Bytes>),
    App(AppBody),
}

/// The app's body on its way to the client.
struct AppBody {
    body: Incoming,
    ended: bool,
    lease: BorrowedConnection,
    meters: Arc<ShimMetrics>,
}

impl Body {
    /// A complete body from the shim itself.
    pub(super) fn whole(body: Full<Bytes>) -> Self {
        Self(BodySource::Whole(body))
    }

    /// The app's body. When it ends, its connection is free for the next exchange.
    pub(super) fn from_app(body: Incoming, lease: BorrowedConnection, meters: Arc<ShimMetrics>) -> Self {
        let ended = body.is_end_stream();
        Self(BodySource::App(AppBody { body, ended, lease, meters }))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.get_mut().0 {
            BodySource::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            BodySource::App(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            BodySource::Whole(body) => body.is_end_stream(),
            BodySource::App(body) => body.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            BodySource::Whole(body) => body.size_hint(),
            BodySource::App(body) => body.body.size_hint(),
        }
    }
}

impl AppBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.ended = true,
            Some(Ok(_)) => self.ended = self.body.is_end_stream(),
            Some(Err(_)) => self.meters.count_broken(),
        }
        Poll::Ready(frame)
    }
}

impl Drop for AppBody {
    fn drop(&mut self) {
        if self.ended {
            self.lease.give_back();
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}
