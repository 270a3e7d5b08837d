//! `Date` for answers of the proxy itself, and for responses that came without one (RFC 9110 §6.6.1 asks for it).

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

/// `Wed, 25 Nov 2026 14:16:18 GMT`
const LENGTH: usize = 29;

thread_local! {
    /// A second and its text.
    static LAST: RefCell<(i64, [u8; LENGTH])> = const { RefCell::new((i64::MIN, [0; LENGTH])) };
}

/// The text of a time in seconds since 1970, in the form that RFC 9110 §5.6.7 prefers.
#[must_use]
pub fn text(second: i64) -> String {
    let at = Timestamp::from_second(second).unwrap_or_default();
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// Appends the field for this time. Each thread formats the text once per second.
pub fn write(at: SystemTime, out: &mut Vec<u8>) {
    let second = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let second = i64::try_from(second).unwrap_or_default();
    out.extend_from_slice(b"Date: ");
    LAST.with_borrow_mut(|(of, text)| {
        if *of != second
            && let Ok(fresh) = self::text(second).as_bytes().try_into()
        {
            (*of, *text) = (second, fresh);
        }
        out.extend_from_slice(text);
    });
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_form_that_rfc_9110_prefers() {
        let mut out = Vec::new();
        write(SystemTime::now(), &mut out);
        let text = String::from_utf8(out).unwrap();
        let date = text.strip_prefix("Date: ").unwrap().strip_suffix("\r\n").unwrap();
        let parsed = jiff::fmt::rfc2822::parse(date).unwrap().timestamp();
        assert!(Timestamp::now().as_second() - parsed.as_second() <= 5, "{date}");
        assert_eq!(date.len(), LENGTH);
    }
}
