//! A WebSocket, once both sides have agreed on it.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::drain::Tunnel;

/// Carries bytes both ways until both sides are done.
pub(super) async fn run(client: OnUpgrade, app: OnUpgrade, tunnel: Tunnel) {
    let _tunnel = tunnel;
    let (Ok(client), Ok(app)) = tokio::join!(client, app) else { return };
    let (mut client, mut app) = (TokioIo::new(client), TokioIo::new(app));
    // How it ended is for the two sides to know.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut app).await;
}
