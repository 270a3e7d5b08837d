//! Errors as operators read them: with their causes, and without the system's error numbers. "(os error 2)" adds
//! nothing to "No such file or directory" and looks like a bug.
//!
//! Everything that is logged, printed or sent in a reply goes through here.

use std::error::Error;

/// What the standard library prints around an error number.
const BEFORE: &str = " (os error ";
const AFTER: char = ')';

/// An error with its causes, each after a colon.
#[must_use]
pub fn plain(error: &dyn Error) -> String {
    let mut text = without_numbers(&error.to_string());
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = without_numbers(&cause.to_string());
        // Some errors already include their cause.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The text without the numbers of system errors.
#[must_use]
pub fn without_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(BEFORE) {
        let (before, number) = (&rest[..at], &rest[at + BEFORE.len()..]);
        let digits = number.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'-').count();
        out.push_str(before);
        rest = match number[digits..].strip_prefix(AFTER) {
            Some(after) if digits > 0 => after,
            _ => {
                out.push_str(BEFORE);
                number
            }
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug)]
    struct Outer(&'static str, io::Error);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "cannot listen on {}", self.0)
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.1)
        }
    }

    #[test]
    fn an_error_is_shown_with_its_cause_and_without_its_number() {
        assert_eq!(plain(&io::Error::from_raw_os_error(2)), "No such file or directory");
        let error = Outer("[::1]:80", io::Error::from_raw_os_error(98));
        assert_eq!(plain(&error), "cannot listen on [::1]:80: Address already in use");
        let wrapped = io::Error::other(format!("cannot open a: {} (why)", io::Error::from_raw_os_error(13)));
        assert_eq!(plain(&wrapped), "cannot open a: Permission denied (why)");
    }

    #[test]
    fn only_numbers_of_system_errors_go() {
        for text in
            ["", "(os error 2)", "a (os error x) b", "a (os error ", "a (os error 2", "é (os errors 2)"]
        {
            assert_eq!(without_numbers(text), text);
        }
        assert_eq!(without_numbers("a (os error 2): b (os error 13)"), "a: b");
    }
}
