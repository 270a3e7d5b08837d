//! Forwards requests to the app and its responses to the client, and responds itself where the app can't.
//!
//! Bodies stream in both directions at once. If a client leaves, the app's work is cancelled: dropping the exchange's
//! future or body drops everything it holds. A request is sent again only if that is safe, see [`Forwarder::send`].

mod body;
mod expect;
mod frames;
mod head;
mod tunnel;
mod upstream;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::checks::HealthChecks;
use crate::drain::Drain;
use crate::metrics::ShimMetrics;
use crate::phase::AppPhase;
use crate::settings::AppAddress;
use body::{Body, RequestBody};
use expect::BodyGate;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use uh_system::without_numbers;
use upstream::{AppConnection, ForwardError, Pool};

/// Everything needed to respond to a request.
pub(crate) struct Forwarder {
    app: AppAddress,
    pool: Arc<Pool>,
    drain: Arc<Drain>,
    checks: Arc<HealthChecks>,
    meters: Arc<ShimMetrics>,
}

impl Forwarder {
    pub(crate) fn new(
        app: AppAddress,
        drain: Arc<Drain>,
        checks: Arc<HealthChecks>,
        meters: Arc<ShimMetrics>,
    ) -> Self {
        Self { app, pool: Arc::default(), drain, checks, meters }
    }

    /// Closes idle connections to the app and keeps none from now on, so that an app that waits for them can exit.
    pub(crate) fn close(&self) {
        self.pool.close();
    }

    /// Answers a request of a client.
    pub(crate) async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        if self.checks.is_asked(&request) && !self.checks.is_left_to_the_app() {
            return self.checks.answer(1).await.map(Body::whole);
        }
        let response = if self.checks.phase() == AppPhase::Starting {
            starting()
        } else if request.method() == Method::CONNECT {
            refusal(StatusCode::METHOD_NOT_ALLOWED, "CONNECT isn't supported")
        } else if let Some(fault) = head::fault(&request) {
            refusal(StatusCode::BAD_REQUEST, fault)
        } else {
            self.forward(request, peer).await.unwrap_or_else(|error| {
                self.meters.count_broken();
                refusal(StatusCode::BAD_GATEWAY, &format!("the app on {} {error}", self.app))
            })
        };
        self.meters.count_response(response.status());
        response
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Result<Response<Body>, ForwardError> {
        let upgrade = head::is_websocket(request.headers()).then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        head::for_app(&mut parts, peer, &self.app, upgrade.is_some());
        let gate = head::expects_continue(&parts.headers).then(BodyGate::new);
        let mut request = Request::from_parts(parts, RequestBody::new(body, gate.clone()));
        if let Some(gate) = &gate {
            gate.watch(&mut request);
        }
        let (mut response, connection) = self.send(request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = upgrade else { return Err(ForwardError::Unasked) };
            let app = hyper::upgrade::on(&mut response);
            connection.into_tunnel();
            tokio::spawn(tunnel::run(client, app, self.drain.begin_tunnel()));
            return Ok(response.map(|_| Body::whole(http_body_util::Full::default())));
        }
        let keep = head::keep_alive(response.headers());
        head::for_client(response.headers_mut());
        *response.version_mut() = hyper::Version::HTTP_11;
        let lease = upstream::BorrowedConnection::new(connection, Arc::clone(&self.pool), keep, gate);
        Ok(response.map(|body| Body::from_app(body, lease, Arc::clone(&self.meters))))
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// The app may close an idle connection just as it is used. Then the request is sent again on a fresh one, if
    /// none of it was written, or if its method is safe and it has no body. Nothing else is ever sent twice.
    async fn send(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, AppConnection), ForwardError> {
        let safe = is_safe(request.method());
        while let Some(mut connection) = self.pool.take(safe) {
            let again = (safe && request.body().is_end_stream()).then(|| head::copy(&request));
            match connection.send(request).await {
                Ok(response) => return Ok((response, connection)),
                Err(failed) => match failed.unsent.or(again) {
                    Some(unsent) => {
                        self.meters.count_resent();
                        request = unsent;
                    }
                    None => return Err(failed.error),
                },
            }
        }
        let mut connection = AppConnection::open(&self.app).await?;
        self.meters.count_opened();
        match connection.send(request).await {
            Ok(response) => Ok((response, connection)),
            Err(failed) => Err(failed.error),
        }
    }
}

/// Safe methods (RFC 9110, 9.2.1) that are common enough to matter.
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

fn starting() -> Response<Body> {
    let mut answer = refusal(StatusCode::SERVICE_UNAVAILABLE, "the app is starting");
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

/// A response from the shim itself, marked as such.
fn refusal(status: StatusCode, reason: &str) -> Response<Body> {
    let mut response = Response::new(Body::whole(format!("app-shim: {}\n", without_numbers(reason)).into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
