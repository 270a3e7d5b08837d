//! Waiting for conditions with a deadline, and addresses that nobody has.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::time::{sleep, timeout};

/// The deadline of everything that should happen immediately. Only what hangs reaches it, however busy the machine is.
pub const SOON: Duration = Duration::from_secs(30);

/// How often a condition is checked.
pub const POLL: Duration = Duration::from_millis(5);

/// Waits until `done` returns something.
///
/// # Errors
/// Names what it waited for, if that doesn't happen soon.
pub async fn until<T>(what: &str, done: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    until_within(SOON, what, done).await
}

/// The same for what takes its time.
///
/// # Errors
/// See [`until`].
pub async fn until_within<T>(
    within: Duration,
    what: &str,
    mut done: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = done().await {
            return Ok(value);
        }
        ensure!(Instant::now() < deadline, "timed out after {within:?} waiting until {what}");
        sleep(POLL).await;
    }
}

/// The same on a thread without a runtime.
///
/// # Errors
/// See [`until`].
pub fn until_blocking<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = done() {
            return Ok(value);
        }
        ensure!(Instant::now() < deadline, "timed out waiting until {what}");
        thread::sleep(POLL);
    }
}

/// Awaits something that should happen soon.
///
/// # Errors
/// Names it, if it doesn't.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    timeout(SOON, future).await.with_context(|| format!("timed out waiting for {what}"))
}

/// A free port below the range of ports that the system assigns, so that nothing else listens on it before its user does.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run at the same time search in different places.
    let first = (std::process::id() % 200) as u16 * 100;
    loop {
        let port = 10_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A free address on the loopback interface: see [`free_port`].
#[must_use]
pub fn free_address() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}
