//! For fuzz targets only, which need the request path without an app process. Never compiled into a shipped program.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Parser as _;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::checks::{HealthChecks, InFlight};
use crate::cli::Args;
use crate::drain::Drain;
use crate::forward::Forwarder;
use crate::health::{AppIdentity, HealthReporter};
use crate::metrics::ShimMetrics;
use crate::phase::AppPhase;
use crate::server;

/// Serves an app that already accepts connections. Never returns.
///
/// # Panics
/// If the settings are invalid.
#[allow(clippy::expect_used, reason = "for tests only")]
pub async fn serve(listener: TcpListener, app: SocketAddr) {
    let args = Args::parse_from(["app-shim", "--app", &app.to_string(), "--", "true"]);
    let settings = args.into_settings().expect("they are good");
    let drain = Arc::new(Drain::default());
    let meters = Arc::new(ShimMetrics::new(Arc::clone(&drain)));
    let (_phase, phases) = watch::channel(AppPhase::Serving);
    let health = HealthReporter::new(AppIdentity::from_lookup(|_| None));
    let checks = HealthChecks::new(&settings, health, phases, InFlight::Exchanges(Arc::clone(&drain)));
    let forwarder = Arc::new(Forwarder::new(settings.app, Arc::clone(&drain), Arc::new(checks), meters));
    let handler = move |request, peer| {
        let forwarder = Arc::clone(&forwarder);
        async move { forwarder.answer(request, peer).await }
    };
    server::serve(listener, drain, 1000, handler).await;
}
