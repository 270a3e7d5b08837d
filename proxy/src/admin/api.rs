//! The admin API: maps HTTP requests to calls on [`Control`], and results to replies. It is a contract: see
//! docs/admin-api.md.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uh_protocol::problem::PROBLEM_MEDIA_TYPE;
use uh_protocol::{BackendName, Code, Problem};
use uh_system::plain;

use super::control::Control;
use super::reload::Asked;
use super::socket::Peer;

/// The largest request body: the largest call registers 64 endpoints.
const MAX_BODY_BYTES: usize = 64 << 10;

/// How long a request body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// The media type of Prometheus' text format.
const METRICS_MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers one request. Never fails: an error is a reply as well.
pub(super) async fn answer(
    control: &Arc<Control>,
    request: Request<Incoming>,
    peer: Peer,
) -> Response<Full<Bytes>> {
    match dispatch(control, request, peer).await {
        Ok(response) => response,
        Err(problem) => problem_response(&problem),
    }
}

/// Answers a request on the metrics listener, which is open to anyone and serves nothing else.
pub(super) fn answer_metrics(control: &Control, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let result = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => metrics(control),
        (_, "/metrics") => Err(Problem::new(Code::MethodNotAllowed, "use GET")),
        (_, path) => Err(unknown_call(path)),
    };
    result.unwrap_or_else(|problem| problem_response(&problem))
}

async fn dispatch(
    control: &Arc<Control>,
    request: Request<Incoming>,
    peer: Peer,
) -> Result<Response<Full<Bytes>>, Problem> {
    let path = request.uri().path().to_owned();
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let method = request.method().clone();
    match (segments.as_slice(), &method) {
        (["metrics"], &Method::GET) => metrics(control),
        (["v1", "status"], &Method::GET) => json(&control.status()),
        (["v1", "certificates"], &Method::GET) => json(&control.certificate_list()),
        (["v1", "switch"], &Method::POST) => {
            let order = body(request).await?;
            let control = Arc::clone(control);
            json(&to_its_end(async move { control.release(order, peer).await }).await?)
        }
        (["v1", "services", service, "switch"], &Method::POST) => {
            let order = body(request).await?;
            let (control, service) = (Arc::clone(control), (*service).to_owned());
            json(&to_its_end(async move { control.switch(&service, order, peer).await }).await?)
        }
        (["v1", "services", service, "backends", backend, "drain"], &Method::POST) => {
            let backend = backend_name(service, backend)?;
            let order = body(request).await?;
            json(&control.drain(service, &backend, order, peer).await?)
        }
        (["v1", "services", service, "backends", backend], &Method::PUT) => {
            let backend = backend_name(service, backend)?;
            let order = body(request).await?;
            let (control, service) = (Arc::clone(control), (*service).to_owned());
            json(
                &to_its_end(async move { control.set_backend(&service, &backend, order, peer).await })
                    .await?,
            )
        }
        (["v1", "services", service, "backends", backend], &Method::DELETE) => {
            let backend = backend_name(service, backend)?;
            let order = body_or_default(request).await?;
            let (control, service) = (Arc::clone(control), (*service).to_owned());
            let change = async move { control.unset_backend(&service, &backend, order, peer).await };
            json(&to_its_end(change).await?)
        }
        (["v1", "services", service, "backends", backend, "withdraw"], &Method::POST) => {
            let backend = backend_name(service, backend)?;
            let order = body_or_default(request).await?;
            let (control, service) = (Arc::clone(control), (*service).to_owned());
            json(&to_its_end(async move { control.withdraw(&service, &backend, order, peer).await }).await?)
        }
        (["v1", "reload"], &Method::POST) => {
            let control = Arc::clone(control);
            json(&to_its_end(async move { control.reload(Asked::By(peer)).await }).await?)
        }
        (["v1", "upgrade"], &Method::POST) => {
            let order = body_or_default(request).await?;
            let control = Arc::clone(control);
            json(&to_its_end(control.upgrade(order, Asked::By(peer))).await?)
        }
        (["v1", "upgrade", "back"], &Method::POST) => {
            json(&to_its_end(Arc::clone(control).back(Asked::By(peer))).await?)
        }
        (["v1", "services", service, "split"], &Method::POST) => {
            let order = body(request).await?;
            let (control, service) = (Arc::clone(control), (*service).to_owned());
            json(&to_its_end(async move { control.split(&service, order, peer).await }).await?)
        }
        (["v1", "services", service, "preview"], &Method::POST) => {
            let order = body(request).await?;
            json(&control.preview(service, order, peer).await?)
        }
        (["v1", "services", service, "maintenance"], &Method::POST) => {
            let order = body(request).await?;
            let (control, service) = (Arc::clone(control), (*service).to_owned());
            json(&to_its_end(async move { control.maintenance(&service, order, peer).await }).await?)
        }
        (
            ["metrics"]
            | ["v1", "status" | "certificates" | "reload" | "switch" | "upgrade"]
            | ["v1", "upgrade", "back"]
            | ["v1", "services", _, "switch" | "split" | "preview" | "maintenance"]
            | ["v1", "services", _, "backends", _]
            | ["v1", "services", _, "backends", _, "drain" | "withdraw"],
            _,
        ) => Err(Problem::new(Code::MethodNotAllowed, format!("this call doesn't support {method}"))),
        _ => Err(unknown_call(&path)),
    }
}

/// Completes a change, with its log line and count, even if the caller disconnects.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    let broken = |e| Problem::new(Code::Internal, format!("the change failed unexpectedly: {e}"));
    tokio::spawn(change).await.map_err(broken)?
}

fn unknown_call(path: &str) -> Problem {
    let shown: String = path.chars().take(200).collect();
    Problem::new(Code::UnknownCall, format!("no such API call: {shown}"))
}

fn backend_name(service: &str, text: &str) -> Result<BackendName, Problem> {
    // An invalid name can't be the name of a backend.
    text.parse().map_err(|e| {
        Problem::new(Code::UnknownBackend, format!("service {service} has no such backend: {e}"))
    })
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Problem> {
    parse(&bytes(request).await?)
}

/// For calls whose body is optional.
async fn body_or_default<T: DeserializeOwned + Default>(request: Request<Incoming>) -> Result<T, Problem> {
    let bytes = bytes(request).await?;
    if bytes.is_empty() { Ok(T::default()) } else { parse(&bytes) }
}

fn invalid(status: u16, detail: String) -> Problem {
    Problem::with_status(Code::InvalidRequest, status, detail)
}

async fn bytes(request: Request<Incoming>) -> Result<Bytes, Problem> {
    let read =
        tokio::time::timeout(BODY_TIMEOUT, Limited::new(request.into_body(), MAX_BODY_BYTES).collect()).await;
    match read {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            Err(invalid(413, format!("the request body is larger than {MAX_BODY_BYTES} bytes")))
        }
        Ok(Err(e)) => Err(invalid(400, format!("cannot read the request body: {}", plain(&*e)))),
        Err(_) => {
            Err(invalid(400, format!("the request body didn't arrive within {} s", BODY_TIMEOUT.as_secs())))
        }
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|e| match e.classify() {
        serde_json::error::Category::Data => {
            invalid(422, format!("the request body doesn't match this call: {e}"))
        }
        _ => invalid(400, format!("the request body isn't valid JSON: {e}")),
    })
}

fn metrics(control: &Control) -> Result<Response<Full<Bytes>>, Problem> {
    let text = control.metrics.text().map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
    Ok(reply(StatusCode::OK, METRICS_MEDIA_TYPE, text.into()))
}

fn json(value: &impl Serialize) -> Result<Response<Full<Bytes>>, Problem> {
    let mut text = serde_json::to_vec(value).map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
    text.push(b'\n');
    Ok(reply(StatusCode::OK, "application/json", text.into()))
}

/// A problem as a reply.
pub(super) fn problem_response(problem: &Problem) -> Response<Full<Bytes>> {
    let mut text = serde_json::to_vec(problem).unwrap_or_default();
    text.push(b'\n');
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = reply(status, PROBLEM_MEDIA_TYPE, text.into());
    if problem.code == Code::Busy {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn reply(status: StatusCode, media_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
