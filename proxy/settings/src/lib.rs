//! TOML settings, checked key by key, quantities with units, and help for command lines.
//!
//! Every mistake in a file is reported at once, each with its key; an unknown key is a mistake; a malformed value is
//! never replaced by a default. Used by every program with a configuration file; the values themselves are the
//! programs' own.

#[cfg(feature = "toml")]
mod file;
#[cfg(feature = "help")]
pub mod help;
#[cfg(feature = "toml")]
mod lines;
#[cfg(feature = "toml")]
mod mistakes;
#[cfg(feature = "toml")]
mod section;
#[cfg(feature = "shell")]
pub mod shell;
pub mod units;

#[cfg(feature = "toml")]
pub use file::{has_table, parse, read, text_at};
#[cfg(feature = "toml")]
pub use mistakes::{ConfigError, Mistake, Mistakes};
#[cfg(feature = "toml")]
pub use section::{Given, Section};
