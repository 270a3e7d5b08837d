//! Asking the app how it is, for a health check.

use std::pin::pin;
use std::time::Duration;

use hyper::StatusCode;
use hyper::client::conn::http1;
use tokio::time::timeout;

use crate::forward::head;
use crate::forward::upstream::connect;
use crate::settings::AppAddress;

/// How long the app may take to answer. Shorter than a prober usually waits, so that the prober gets the reason.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Whether the app accepts connections.
pub(super) async fn connects(app: &AppAddress) -> Result<(), String> {
    match timeout(ANSWER_TIMEOUT, connect(app)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("the app on {app} can't be reached: {error}")),
        Err(_) => Err(format!("the app on {app} accepts no connection within {ANSWER_TIMEOUT:?}")),
    }
}

/// Whether the app says that it is healthy. The status decides, so the body isn't read: it may be chunked, may end
/// with the connection, and may be as large and slow as it likes.
pub(super) async fn asks(app: &AppAddress, path: &str) -> Result<(), String> {
    match timeout(ANSWER_TIMEOUT, status(app, path)).await {
        Ok(Ok(status)) if status.is_success() => Ok(()),
        Ok(Ok(status)) => Err(format!("the app answers {status} at {path}")),
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err(format!("the app does not answer at {path} within {ANSWER_TIMEOUT:?}")),
    }
}

/// The status of the app's answer, as soon as its head is complete. Closes the connection.
async fn status(app: &AppAddress, path: &str) -> Result<StatusCode, String> {
    let stream = connect(app).await.map_err(|error| format!("the app on {app} can't be reached: {error}"))?;
    let broken = |error: hyper::Error| format!("the app does not answer at {path}: {error}");
    let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
    let request = head::own(path, app).ok_or_else(|| format!("{path} is no path"))?;
    let mut response = pin!(sender.send_request(request));
    // The connection ends only after the body, which nobody reads: it must never be waited for alone.
    let answered = tokio::select! {
        biased;
        response = response.as_mut() => response,
        _ = connection => response.await,
    };
    Ok(answered.map_err(broken)?.status())
}
