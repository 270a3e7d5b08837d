//! Polls the certificate files and reloads those that have changed. Also logs certificates that expire, and ages session
//! tickets.
//!
//! Polling instead of inotify: files on network disks, in bind mounts and behind swapped links change without an event.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};

use super::Server;

/// The polling interval. A check costs microseconds; a renewed certificate can wait for half a minute.
pub(crate) const INTERVAL: Duration = Duration::from_secs(30);

/// How long a check may take before it is logged, so that a hanging disk is noticed.
const SLOW_AFTER: Duration = Duration::from_secs(5);

/// Polls until the process ends.
pub(crate) async fn run(server: Arc<Server>) {
    let mut ticks = interval(INTERVAL);
    // The start has logged the certificates that had expired before.
    let mut checked_at = Timestamp::now();
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Timestamp::now();
        server.log_expired(checked_at, now);
        server.age_tickets();
        checked_at = now;
        let server = Arc::clone(&server);
        let mut check = tokio::task::spawn_blocking(move || server.reload_changed());
        // One at a time: each check that hangs occupies one of few threads.
        if tokio::time::timeout(SLOW_AFTER, &mut check).await.is_err() {
            tracing::error!("reading the certificate files takes longer than 5 s; check their disk");
            let _ = check.await;
        }
    }
}
