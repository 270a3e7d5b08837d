//! The shim's own log lines, on standard error: `[2025-12-03 10:30:00] Received SIGTERM` (UTC).
//!
//! A separate thread writes them, because a slow, stuck or vanished reader of standard error must not delay a drain.
//! When the queue is full, lines are dropped.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use uh_system::without_numbers;

/// Lines that wait for the writing thread.
const QUEUE_LINES: usize = 1_000;
/// How long the last lines may take to be written when the process ends.
const FLUSH_WAIT: Duration = Duration::from_secs(1);

/// Where lines go. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Log(SyncSender<String>);

/// Closed once everything is written.
#[derive(Debug)]
pub(crate) struct LogFlush(Receiver<()>);

impl Log {
    /// Starts the writing thread.
    pub(crate) fn start() -> io::Result<(Self, LogFlush)> {
        let (sender, lines) = sync_channel::<String>(QUEUE_LINES);
        let (all_written, written) = sync_channel(0);
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            for line in lines {
                // If standard error is gone, the error can't be reported either.
                let _ = io::stderr().write_all(line.as_bytes());
            }
            drop(all_written);
        })?;
        Ok((Self(sender), LogFlush(written)))
    }

    /// Writes a line.
    pub(crate) fn line(&self, message: impl Display) {
        let time = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S");
        let _ = self.0.try_send(format!("[{time}] {}\n", without_numbers(&message.to_string())));
    }
}

impl LogFlush {
    /// Waits briefly for the last lines. Every [`Log`] must have been dropped.
    pub(crate) fn wait(&self) {
        let _ = self.0.recv_timeout(FLUSH_WAIT);
    }
}
