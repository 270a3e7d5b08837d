//! Deploys a new version next to the one that serves, verifies it and switches. It can be killed at any moment and
//! recovers.
//!
//! In reading order: [`config`] is the configuration; [`deploy`] decides, records and acts; [`runtime`] builds,
//! starts and stops instances of the app; [`front`] talks to uh-proxy; [`gate`] is the health gate, which uses
//! [`probe`]; [`counters`] and [`verdict`] judge a backend, with [`evidence`] for a breach; [`downtime`] measures
//! what users noticed; [`report`] prints, without secrets ([`redact`]); [`notice`] runs hooks and the webhook;
//! [`validate`] checks everything before a deploy; [`cli`] is the command line. Helpers: [`check`], [`command`],
//! [`env_file`], [`files`], [`ports`], [`time`], [`fault`], [`lines`].

pub mod check;
pub mod cli;
pub mod command;
pub mod config;
pub mod counters;
pub mod deploy;
pub mod downtime;
pub mod env_file;
pub mod evidence;
pub mod fault;
pub mod files;
pub mod front;
pub mod gate;
pub mod lines;
pub mod notice;
pub mod ports;
pub mod probe;
pub mod redact;
pub mod report;
pub mod runtime;
pub mod time;
pub mod validate;
pub mod verdict;

/// System errors without their numbers: `No such file or directory`, without `(os error 2)`.
fn plain(text: &str) -> String {
    let Some((words, rest)) = text.split_once(" (os error ") else { return text.to_owned() };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    match rest[digits..].strip_prefix(')') {
        Some(rest) if digits > 0 => format!("{words}{}", plain(rest)),
        _ => text.to_owned(),
    }
}

/// An error and its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = plain(&error.to_string());
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = plain(&cause.to_string());
        // Some errors include their cause themselves.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_system_error_is_shown_without_its_number() {
        let error = std::io::Error::from_raw_os_error(2);
        assert_eq!(super::chain(&error), "No such file or directory");
        let twice = std::io::Error::other(format!("a: {error}; b: {error}"));
        assert_eq!(super::chain(&twice), "a: No such file or directory; b: No such file or directory");
        assert_eq!(super::plain("not an (os error x)"), "not an (os error x)");
    }
}
