//! Accepts and serves connections, and drains them without losing a response.
//!
//! When the drain starts, connections the kernel has already accepted are taken over, and the port is closed. From
//! then on every response has `Connection: close`. A keep-alive connection is closed only after it has been quiet for
//! a while, because the client may just be sending its next request on it. Used by the program and by Rust apps that
//! embed it.

mod activity;
mod port;
mod tracked;

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::drain::{Drain, Work};
use activity::{ActiveExchange, Activity};
use tracked::{TrackedBody, TrackedStream};

/// How long to wait after a failed `accept`: usually the process is out of descriptors, and only time frees some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a keep-alive connection must be quiet, in a drain, before it is closed. A client that sends request after
/// request sends the next one within this time.
const QUIET: Duration = Duration::from_millis(500);
/// How long a request's head may take, and how long an idle connection is kept. Longer than proxies in front keep one
/// (uh-proxy 4 s, nginx 60 s), so that the proxy closes it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// The most fields of a request: more than uh-proxy forwards (at most 128) plus the dozen it adds.
pub const REQUEST_FIELDS_MAX: usize = 160;
/// The most fields of a response: as many as uh-proxy forwards by default.
pub const RESPONSE_FIELDS_MAX: usize = 1000;
/// The largest request head, and the most that is buffered in each direction.
const BUFFER_MAX: usize = 64 << 10;

/// Serves until the drain starts, then closes the port. Connections continue in their own tasks, each of which is
/// work of the drain. Connections beyond `connections_max` wait to be accepted.
pub async fn serve<H, F, B>(listener: TcpListener, drain: Arc<Drain>, connections_max: usize, handler: H)
where
    H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let room = Arc::new(Semaphore::new(connections_max));
    // Held until the port is closed, so that the drain can't end before.
    let mut work = drain.begin_work();
    let spawn = |(stream, peer): (TcpStream, SocketAddr), permit: Option<OwnedSemaphorePermit>| {
        let connection = Connection { peer, drain: Arc::clone(&drain), handler: handler.clone() };
        let work = drain.begin_work();
        tokio::spawn(async move {
            connection.serve(stream, work).await;
            drop(permit);
        });
    };
    loop {
        tokio::select! {
            biased;
            _ = work.drain_started() => break,
            (accepted, permit) = accept(&listener, &room) => match accepted {
                Ok(accepted) => spawn(accepted, permit),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    // From the clients' point of view these are connected, and requests may have been sent.
    for accepted in port::close(listener).await {
        spawn(accepted, None);
    }
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> (io::Result<(TcpStream, SocketAddr)>, Option<OwnedSemaphorePermit>) {
    // It fails only if the semaphore is closed, which it never is.
    let permit = Arc::clone(room).acquire_owned().await.ok();
    (listener.accept().await, permit)
}

struct Connection<H> {
    peer: SocketAddr,
    drain: Arc<Drain>,
    handler: H,
}

impl<H, F, B> Connection<H>
where
    H: Fn(Request<Incoming>, SocketAddr) -> F,
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Serves requests until either side closes the connection.
    async fn serve(self, stream: TcpStream, mut work: Work) {
        // Send each piece immediately. If this fails, pieces are only delayed.
        let _ = stream.set_nodelay(true);
        let activity = Arc::new(Activity::default());
        let stream = TrackedStream::new(stream, Arc::clone(&activity));
        let service = service_fn(|request| {
            let busy = ActiveExchange::begin(&activity, self.drain.begin_exchange());
            let response = (self.handler)(request, self.peer);
            async {
                let mut response = response.await;
                if self.drain.has_started() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response.map(|body| TrackedBody::new(body, busy)))
            }
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(REQUEST_FIELDS_MAX)
            .max_buf_size(BUFFER_MAX)
            .max_header_size(BUFFER_MAX);
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let mut connection = pin!(connection);
        // Errors aren't reported: the client either has its complete response or sees that it hasn't.
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = work.drain_started() => {}
        }
        let mut seen = None;
        while !activity.was_quiet_since(&mut seen) {
            tokio::select! {
                _ = connection.as_mut() => return,
                () = tokio::time::sleep(QUIET) => {}
            }
        }
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}
