//! Deploys a version beside the one that serves, proves it, switches, and can be killed anywhere.
//!
//! In reading order: [`config`] says what there is; [`deploy`] decides, remembers and acts; [`runtime`] builds, starts
//! and stops copies of the app; [`front`] is the front door as seen from here; [`gate`] lets a candidate pass, by
//! [`probe`]; [`counters`] tell how a backend fares, [`downtime`] what users noticed; [`report`] tells an operator, without secrets ([`redact`]); [`notice`] tells others; [`validate`] asks before a deploy what could go wrong; [`cli`] is what an operator types. Small tools beside
//! them: [`check`], [`command`], [`env_file`], [`files`], [`ports`], [`time`], [`fault`], [`lines`].

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

/// A system's error in words: `No such file or directory`, without the number that the library puts behind it.
fn plain(text: &str) -> String {
    let Some((words, rest)) = text.split_once(" (os error ") else { return text.to_owned() };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    match rest[digits..].strip_prefix(')') {
        Some(rest) if digits > 0 => format!("{words}{}", plain(rest)),
        _ => text.to_owned(),
    }
}

/// An error with its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = plain(&error.to_string());
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = plain(&cause.to_string());
        // Some say their cause themselves.
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
    fn a_systems_error_is_told_in_words() {
        let error = std::io::Error::from_raw_os_error(2);
        assert_eq!(super::chain(&error), "No such file or directory");
        let twice = std::io::Error::other(format!("a: {error}; b: {error}"));
        assert_eq!(super::chain(&twice), "a: No such file or directory; b: No such file or directory");
        assert_eq!(super::plain("not an (os error x)"), "not an (os error x)");
    }
}
