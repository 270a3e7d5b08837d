//! Probes the app for a health check.

use std::pin::pin;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, StatusCode};
use tokio::time::timeout;

use crate::app_link::connect;
use crate::settings::AppAddress;

/// How long the app may take to answer. Shorter than a prober usually waits, so that the prober gets the reason.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Whether the app accepts connections.
pub(super) async fn connects(app: &AppAddress) -> Result<(), String> {
    match timeout(ANSWER_TIMEOUT, connect(app)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("can't reach the app on {app}: {error}")),
        Err(_) => Err(format!("the app on {app} doesn't accept a connection within {ANSWER_TIMEOUT:?}")),
    }
}

/// Whether the app reports that it is healthy. The status decides, so the body isn't read, however large or slow it
/// is.
pub(super) async fn asks(app: &AppAddress, path: &str) -> Result<(), String> {
    match timeout(ANSWER_TIMEOUT, status(app, path)).await {
        Ok(Ok(status)) if status.is_success() => Ok(()),
        Ok(Ok(status)) => Err(format!("the app answers {status} at {path}")),
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err(format!("the app doesn't answer at {path} within {ANSWER_TIMEOUT:?}")),
    }
}

/// The status of the app's answer, as soon as its head is complete. Closes the connection.
async fn status(app: &AppAddress, path: &str) -> Result<StatusCode, String> {
    let stream = connect(app).await.map_err(|error| format!("can't reach the app on {app}: {error}"))?;
    let broken = |error: hyper::Error| format!("the app doesn't answer at {path}: {error}");
    let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
    let request = Request::get(path).header(HOST, app.host()).header(CONNECTION, "close");
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| format!("{path} isn't a valid path"))?;
    let mut response = pin!(sender.send_request(request));
    // The connection ends only after the body, which isn't read, so never wait for the connection alone.
    let answered = tokio::select! {
        biased;
        response = response.as_mut() => response,
        _ = connection => response.await,
    };
    Ok(answered.map_err(broken)?.status())
}
