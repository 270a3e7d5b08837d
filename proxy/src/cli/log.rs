//! uh-proxy's log messages: `tracing` to standard error, on a separate thread.
//!
//! The reader of standard error may be slow, stuck or gone. That must not delay a switch or a probe: a message that
//! can't be written in time is dropped.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};

use crate::config::LogFormat;

/// Messages queued for the writer thread. Beyond that they are dropped.
const QUEUE_MESSAGES: usize = 10_000;

/// Starts logging. When the guard is dropped, it writes what is queued, within about a second.
pub(super) fn start(format: LogFormat) -> WorkerGuard {
    let builder = NonBlockingBuilder::default().buffered_lines_limit(QUEUE_MESSAGES).lossy(true);
    let (writer, guard) = builder.thread_name("log").finish(io::stderr());
    let builder = tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).with_writer(writer);
    // Colour codes belong on a terminal, not in a log file.
    let builder = builder.with_ansi(io::stderr().is_terminal());
    // Only the first call in a process can succeed, and there is only one call.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    guard
}
