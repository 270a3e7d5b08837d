//! A WebSocket, once both sides have agreed on it.
//!
//! When the drain starts, a tunnel continues: only its two sides know when a conversation is over. As soon as it has
//! been quiet for a while, or shortly before the deadline, both sides get a close frame (1001, going away) between
//! two frames. Each then has until the deadline to answer with its own. The client reconnects and reaches another
//! backend.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::frames::{Frames, Sender, going_away};
use crate::drain::Tunnel;

/// How long a tunnel must be quiet, in a drain, before it is closed.
const QUIET: Duration = Duration::from_secs(2);
/// How long before the deadline it is closed at the latest; half of the drain, if that is shorter.
const CLOSE_BEFORE: Duration = Duration::from_secs(5);
/// How much is read at once.
const BUFFER: usize = 8 << 10;

/// Forwards frames in both directions until both sides are done.
pub(super) async fn run(client: OnUpgrade, app: OnUpgrade, mut tunnel: Tunnel) {
    let (Ok(client), Ok(app)) = tokio::join!(client, app) else { return };
    let (from_client, to_client) = tokio::io::split(TokioIo::new(client));
    let (from_app, to_app) = tokio::io::split(TokioIo::new(app));
    let clock = LastActivity::default();
    let (close_now, closing) = watch::channel(false);
    let carrying = async {
        let up = carry(from_client, to_app, Sender::Client, &clock, closing.clone());
        let down = carry(from_app, to_client, Sender::Server, &clock, closing);
        // If one direction breaks, the other is useless.
        let _ = tokio::try_join!(up, down);
    };
    tokio::select! {
        () = carrying => {}
        () = signal_close_in_time(&mut tunnel, &clock, &close_now) => {}
    }
}

/// When data last moved.
#[derive(Debug)]
struct LastActivity {
    started_at: Instant,
    moved_after_ms: AtomicU64,
}

impl Default for LastActivity {
    fn default() -> Self {
        Self { started_at: Instant::now(), moved_after_ms: AtomicU64::new(0) }
    }
}

impl LastActivity {
    fn touch(&self) {
        self.moved_after_ms.store(self.started_at.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn moved_at(&self) -> Instant {
        self.started_at + Duration::from_millis(self.moved_after_ms.load(Ordering::Relaxed))
    }
}

/// Signals both directions when it is time to close. Never returns.
async fn signal_close_in_time(tunnel: &mut Tunnel, clock: &LastActivity, close_now: &watch::Sender<bool>) {
    let deadline = tunnel.drain_started().await;
    let left = deadline.saturating_duration_since(Instant::now());
    let at_the_latest = deadline - CLOSE_BEFORE.min(left / 2);
    loop {
        let due = (clock.moved_at() + QUIET).min(at_the_latest);
        if due <= Instant::now() {
            break;
        }
        sleep_until(due).await;
    }
    close_now.send_replace(true);
    std::future::pending::<()>().await;
}

/// Forwards one direction, from `sender`.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    sender: Sender,
    clock: &LastActivity,
    mut closing: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut frames = Frames::default();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = tokio::select! {
            biased;
            closing = closing.wait_for(|closing| *closing) => {
                drop(closing);
                break;
            }
            count = from.read(&mut buffer) => count?,
        };
        if count == 0 {
            return to.shutdown().await;
        }
        clock.touch();
        frames.follow(&buffer[..count]);
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
    }
    close(from, to, sender, frames, buffer).await
}

/// Sends a close frame after the frame in transit and drops what follows: nothing may come after a close frame.
/// Returns after the sender's own close frame.
async fn close(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    sender: Sender,
    mut frames: Frames,
    mut buffer: Vec<u8>,
) -> io::Result<()> {
    let mut can_close = frames.is_between();
    let mut close_sent = false;
    loop {
        if can_close && !close_sent {
            // A sender that has already closed needs no second close frame.
            if !frames.is_closed() {
                to.write_all(&going_away(sender)).await?;
                to.flush().await?;
            }
            close_sent = true;
        }
        if close_sent && frames.is_closed() {
            return Ok(());
        }
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        let boundary = frames.follow(&buffer[..count]);
        if !close_sent {
            to.write_all(&buffer[..boundary.unwrap_or(count)]).await?;
            to.flush().await?;
            can_close = boundary.is_some();
        }
    }
}
