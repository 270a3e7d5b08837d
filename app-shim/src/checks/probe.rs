//! Asking the app how it is, for a health check.

use std::time::Duration;

use hyper::client::conn::http1;
use tokio::time::timeout;

use crate::forward::head;
use crate::forward::upstream::connect;
use crate::settings::AppAddress;

/// How long the app may take to answer. Below what a prober commonly waits, so that it hears why.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Whether the app accepts connections.
pub(super) async fn connects(app: &AppAddress) -> Result<(), String> {
    match timeout(ANSWER_TIMEOUT, connect(app)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("the app on {app} can't be reached: {error}")),
        Err(_) => Err(format!("the app on {app} accepts no connection within {ANSWER_TIMEOUT:?}")),
    }
}

/// Whether the app says that it is healthy.
pub(super) async fn asks(app: &AppAddress, path: &str) -> Result<(), String> {
    let asking = async {
        let stream =
            connect(app).await.map_err(|error| format!("the app on {app} can't be reached: {error}"))?;
        let broken = |error: hyper::Error| format!("the app does not answer at {path}: {error}");
        let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
        let Some(request) = head::own(path, app) else { return Err(format!("{path} is no path")) };
        let (_, response) = tokio::join!(connection, async move { sender.send_request(request).await });
        match response.map_err(broken)?.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("the app answers {status} at {path}")),
        }
    };
    let late = |_| Err(format!("the app does not answer at {path} within {ANSWER_TIMEOUT:?}"));
    timeout(ANSWER_TIMEOUT, asking).await.unwrap_or_else(late)
}
