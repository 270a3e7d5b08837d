//! Our own messages: `tracing`, to standard error, by a thread of their own.
//!
//! Whoever reads standard error may be slow, stuck or gone. That must not hold up a switch or a probe, nor end one: a
//! message that can't be written in time is lost.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};

use crate::config::LogFormat;

/// Messages that wait for the writing thread. Beyond that they are lost.
const QUEUE_MESSAGES: usize = 10_000;

/// Starts logging. The guard writes what is waiting when it is dropped, and takes about a second for it at most.
pub(super) fn start(format: LogFormat) -> WorkerGuard {
    let builder = NonBlockingBuilder::default().buffered_lines_limit(QUEUE_MESSAGES).lossy(true);
    let (writer, guard) = builder.thread_name("log").finish(io::stderr());
    let builder = tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).with_writer(writer);
    // Colour codes belong on a terminal, not in a log file.
    let builder = builder.with_ansi(io::stderr().is_terminal());
    // Only the first call in a process can succeed, and there is only one.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    guard
}
