//! The paths, and the simple endpoints.
//!
//! Every response has `x-backend` and `x-version`, including rejections and upgrades, except hyper's own response to
//! an unreadable request head.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::HeaderName;
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use uh_app_shim::health::HealthStatus;

use crate::query::{self, Query};
use crate::reply::{self, Body, Rejection};
use crate::server::App;
use crate::settings::{Failing, Health};
use crate::{streams, uploads, websocket};

/// The longest wait a request may ask for, in milliseconds: ten minutes.
pub(crate) const WAIT_MAX_MS: u64 = 600_000;
/// How late a version answers that is too slow, in milliseconds.
const LATE_MS: u64 = 400;

/// How long `/slow` waits by default, in milliseconds.
const SLOW_DEFAULT_MS: u64 = 1_000;

/// Answers one request.
pub(crate) async fn answer(app: &App, request: Request<Incoming>) -> Response<Body> {
    let mut response = route(app, request).await.unwrap_or_else(Rejection::into_response);
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("x-backend"), app.settings.backend.header());
    headers.insert(HeaderName::from_static("x-version"), app.settings.version.header());
    response
}

async fn route(app: &App, request: Request<Incoming>) -> Result<Response<Body>, Rejection> {
    let path = request.uri().path().to_owned();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    match segments.as_slice() {
        ["api", "health"] => return Ok(health(app)),
        _ if app.fails_now() => {
            if let Some(failed) = fail(app.settings.fail_how).await {
                return failed;
            }
        }
        _ => {}
    }
    match segments.as_slice() {
        [""] => Ok(greeting(app)),
        ["slow"] => slow(app, &request).await,
        ["stream"] => streams::events(app, &request),
        ["ws"] => websocket::upgrade(app, request),
        ["upload"] => uploads::upload(app, request).await,
        ["echo"] => Ok(uploads::echo(request)),
        ["headers"] => Ok(request_as_seen(&request)),
        ["status", code] => status(code),
        ["bytes", count] => streams::bytes(count, &request),
        _ => Err(Rejection::new(StatusCode::NOT_FOUND, "no such page")),
    }
}

/// Backend and version in one line: `blue 1.0.0`.
pub(crate) fn identity(app: &App) -> String {
    format!("{} {}", app.settings.backend.as_str(), app.settings.version.as_str())
}

/// What a broken version does with a request. `None`: what any version does.
async fn fail(how: Failing) -> Option<Result<Response<Body>, Rejection>> {
    match how {
        Failing::Status => {
            Some(Err(Rejection::new(StatusCode::INTERNAL_SERVER_ERROR, "this version is broken")))
        }
        Failing::Hang => std::future::pending().await,
        Failing::Cut => Some(Ok(streams::cut())),
        Failing::Late => {
            tokio::time::sleep(Duration::from_millis(LATE_MS)).await;
            None
        }
    }
}

fn greeting(app: &App) -> Response<Body> {
    reply::text(StatusCode::OK, format!("{}\n", identity(app)))
}

/// During a drain, only requests on older connections arrive, because the listener is closed.
fn health(app: &App) -> Response<Body> {
    let status = match (app.drain.has_started(), app.settings.health) {
        (true, _) => HealthStatus::Draining,
        (false, Health::Unhealthy) => HealthStatus::Unhealthy,
        (false, Health::Healthy) => HealthStatus::Healthy,
    };
    // The check itself is in flight too.
    let in_flight = app.drain.in_flight().saturating_sub(1);
    app.health.answer(status, in_flight, None).map(reply::whole_body)
}

async fn slow(app: &App, request: &Request<Incoming>) -> Result<Response<Body>, Rejection> {
    let wait_ms = Query::of(request.uri()).number("ms", 0..=WAIT_MAX_MS)?.unwrap_or(SLOW_DEFAULT_MS);
    tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    Ok(greeting(app))
}

/// The request as hyper parses it: names in lower case, values of a name together.
fn request_as_seen(request: &Request<Incoming>) -> Response<Body> {
    let headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
        .collect();
    let body = json!({
        "method": request.method().as_str(),
        "target": request.uri().to_string(),
        "version": format!("{:?}", request.version()),
        "headers": headers,
    });
    reply::json(StatusCode::OK, &body)
}

fn status(code: &str) -> Result<Response<Body>, Rejection> {
    let not_a_status = || Rejection::bad_request("the status must be a number from 200 to 999");
    let code: u16 = query::number("the status", code, 200..=999)?.try_into().map_err(|_| not_a_status())?;
    let status = StatusCode::from_u16(code).map_err(|_| not_a_status())?;
    Ok(match status {
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => reply::bare(status),
        _ => reply::text(status, format!("{status}\n")),
    })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::settings::Settings;

    /// Not over a socket, because hyper doesn't signal when it has read half a head.
    #[tokio::test]
    async fn health_reports_draining_whether_healthy_or_not() {
        for unhealthy in ["0", "1"] {
            let lookup = |name: &str| (name == "UNHEALTHY").then(|| unhealthy.into());
            let settings = Settings::from_lookup(lookup).unwrap();
            let app = App::new(settings);
            app.drain.start(Duration::from_secs(1));
            let answer = health(&app);
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let health: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(health["status"], "draining");
        }
    }
}
