//! Our own messages: `tracing`, to standard error.

use tracing::level_filters::LevelFilter;

use crate::config::LogFormat;

/// Starts logging. Once; a second call changes nothing.
pub(super) fn start(format: LogFormat) {
    let builder = tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).with_writer(std::io::stderr);
    // Colour codes belong on a terminal, not in a log file.
    let builder = builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
