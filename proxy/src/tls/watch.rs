//! Looks at the certificates' files every so often, and has those read again that have changed.
//!
//! A look, not a subscription: files on network disks, in bind mounts and behind swapped links change without an event.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::Server;

/// From one look to the next. Looking at a file costs microseconds; a renewed certificate can wait for half a minute.
pub const LOOK_EVERY: Duration = Duration::from_secs(30);

/// How long a look may take before it is logged: a disk that hangs must not pass unnoticed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks for as long as the process lives.
pub async fn run(server: Arc<Server>) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let server = Arc::clone(&server);
        let mut look = tokio::task::spawn_blocking(move || server.reload_changed());
        // One at a time: each that hangs holds a thread, of which there are few.
        if tokio::time::timeout(PATIENCE, &mut look).await.is_err() {
            tracing::error!("reading the certificates' files takes too long: is their disk there?");
            let _ = look.await;
        }
    }
}
