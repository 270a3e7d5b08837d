//! Serves health, and metrics if configured, on separate ports, until the process exits.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};

use crate::checks::HealthChecks;
use crate::drain::Drain;
use crate::metrics::ShimMetrics;
use crate::server;

/// More than operators and probes need at once.
const CONNECTIONS_MAX: usize = 64;

/// Starts serving. Stops with the async runtime.
pub(crate) fn start(
    listener: TcpListener,
    checks: Arc<HealthChecks>,
    meters: Option<Arc<ShimMetrics>>,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let handler = move |request: Request<Incoming>, _: SocketAddr| {
        let (checks, meters) = (Arc::clone(&checks), meters.clone());
        async move {
            match meters {
                _ if checks.is_asked(&request) => checks.answer(0).await,
                Some(meters) if request.uri().path() == "/metrics" => text(StatusCode::OK, meters.render()),
                _ => text(StatusCode::NOT_FOUND, "not found\n".to_owned()),
            }
        }
    };
    // This drain never starts, and nothing waits for it.
    tokio::spawn(server::serve(listener, Arc::new(Drain::default()), CONNECTIONS_MAX, handler));
    Ok(())
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
    response
}
