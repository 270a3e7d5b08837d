//! Conditional and range requests (RFC 9110 §13 and §14), decided on values: what a request asks of a representation
//! with these validators.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use super::field::values;

/// How much older than the response a date must be to be a strong validator (RFC 9110 §8.8.2.2).
const STRONG_AFTER: Duration = Duration::from_secs(1);

/// What identifies a state of a representation.
#[derive(Debug, Clone, Copy)]
pub struct Validators<'a> {
    /// The entity tag with its quotes. A strong one.
    pub etag: &'a str,
    /// When it was last modified.
    pub modified: SystemTime,
    /// The same as in `Last-Modified`.
    pub modified_text: &'a str,
    /// Its length in bytes.
    pub length: u64,
}

/// What a request for a representation gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// All of it: 200.
    Whole,
    /// A part of it, which isn't empty: 206.
    Part(Range<u64>),
    /// The client has it: 304.
    NotModified,
    /// It isn't what the client expects: 412.
    Failed,
    /// No part of it was asked for: 416.
    Unsatisfiable,
}

/// Decides what a `GET` or `HEAD` with this head gets, in the order of RFC 9110 §13.2.2. `ranges`: whether a part may be
/// asked for, as by `GET` alone.
#[must_use]
pub fn select(head: &[u8], of: &Validators<'_>, ranges: bool, now: SystemTime) -> Selection {
    let mut asked = Asked::read(head);
    if let Some(matches) = asked.match_ {
        if !matches.strongly(of.etag) {
            return Selection::Failed;
        }
    } else if let Some(date) = asked.unmodified_since
        && parse_date(date).is_some_and(|date| seconds(of.modified) > seconds(date))
    {
        return Selection::Failed;
    }
    if let Some(matches) = asked.none_match {
        if matches.weakly(of.etag) {
            return Selection::NotModified;
        }
    } else if asked.modified_since == Some(of.modified_text.as_bytes()) {
        // Only this very date: after a rollback, an older state must replace a newer one.
        return Selection::NotModified;
    }
    let range = asked.range.take().filter(|_| ranges && asked.range_applies(of, now));
    range.map_or(Selection::Whole, |range| part(range, of.length))
}

/// The fields that matter.
#[derive(Default)]
struct Asked<'a> {
    match_: Option<Tags<'a>>,
    none_match: Option<Tags<'a>>,
    modified_since: Option<&'a [u8]>,
    unmodified_since: Option<&'a [u8]>,
    range: Option<&'a [u8]>,
    if_range: Option<&'a [u8]>,
}

impl<'a> Asked<'a> {
    fn read(head: &'a [u8]) -> Self {
        let mut asked = Self::default();
        // All names begin with an I or an R: few lines are looked at twice.
        for line in head.split(|&b| b == b'\n').skip(1) {
            if !matches!(line.first(), Some(b'i' | b'I' | b'r' | b'R')) {
                continue;
            }
            let Some(colon) = memchr::memchr(b':', line) else { continue };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
            if is("if-match") {
                asked.match_.get_or_insert(Tags { head, name });
            } else if is("if-none-match") {
                asked.none_match.get_or_insert(Tags { head, name });
            } else if is("if-modified-since") {
                asked.modified_since = Some(value);
            } else if is("if-unmodified-since") {
                asked.unmodified_since = Some(value);
            } else if is("range") {
                asked.range = Some(value);
            } else if is("if-range") {
                asked.if_range = Some(value);
            }
        }
        asked
    }

    /// Whether the range is meant for this state of the representation.
    fn range_applies(&self, of: &Validators<'_>, now: SystemTime) -> bool {
        match self.if_range {
            None => true,
            Some(tag @ [b'"' | b'W', ..]) if tag.ends_with(b"\"") => tag == of.etag.as_bytes(),
            Some(date) => date == of.modified_text.as_bytes() && now >= of.modified + STRONG_AFTER,
        }
    }
}

/// The entity tags of a field, which may come in several lines.
#[derive(Clone, Copy)]
struct Tags<'a> {
    head: &'a [u8],
    name: &'a [u8],
}

impl Tags<'_> {
    /// Strong comparison: a weak tag equals none (RFC 9110 §8.8.3.2).
    fn strongly(self, etag: &str) -> bool {
        self.any(|tag, weak| !weak && tag == etag.as_bytes())
    }

    fn weakly(self, etag: &str) -> bool {
        self.any(|tag, _| tag == etag.as_bytes())
    }

    fn any(self, equals: impl Fn(&[u8], bool) -> bool) -> bool {
        values(self.head, self.name).any(|value| value == b"*" || list_has(value, &equals))
    }
}

/// Whether a tag of a list is meant. A tag may have commas in it. Ends at what isn't a tag.
fn list_has(mut list: &[u8], equals: &impl Fn(&[u8], bool) -> bool) -> bool {
    loop {
        list = trim_commas(list);
        let weak = list.starts_with(b"W/");
        let tag = if weak { &list[2..] } else { list };
        let Some(inner) = tag.strip_prefix(b"\"") else { return false };
        let Some(end) = memchr::memchr(b'"', inner) else { return false };
        if equals(&tag[..end + 2], weak) {
            return true;
        }
        list = &inner[end + 1..];
    }
}

fn trim_commas(list: &[u8]) -> &[u8] {
    let at = list.iter().position(|b| !matches!(b, b',' | b' ' | b'\t'));
    at.map_or(&[], |at| &list[at..])
}

/// One range is a part. Several get the whole representation, which RFC 9110 §14.2 allows, unless it has none of them.
/// So does what isn't understood.
fn part(range: &[u8], length: u64) -> Selection {
    let unit = range.get(..6).filter(|unit| unit.eq_ignore_ascii_case(b"bytes="));
    let Some(list) = unit.map(|unit| &range[unit.len()..]) else { return Selection::Whole };
    let mut first = None;
    let (mut asked, mut satisfiable) = (0, 0);
    for item in list.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|item| !item.is_empty()) {
        let Some(bytes) = one(item, length) else { return Selection::Whole };
        asked += 1;
        if !bytes.is_empty() {
            satisfiable += 1;
            first.get_or_insert(bytes);
        }
    }
    match (first, satisfiable) {
        (Some(bytes), 1) => Selection::Part(bytes),
        (None, _) if asked > 0 => Selection::Unsatisfiable,
        _ => Selection::Whole,
    }
}

/// `5-9`, `5-` or `-5`, as far as the representation has it; empty: it has none of it. `None`: malformed.
fn one(item: &[u8], length: u64) -> Option<Range<u64>> {
    let dash = memchr::memchr(b'-', item)?;
    let (first, last) = (&item[..dash], &item[dash + 1..]);
    match (first, last) {
        (b"", last) => Some(length.saturating_sub(number(last)?)..length),
        (first, b"") => Some(number(first)?.min(length)..length),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            Some(first.min(length)..last.saturating_add(1).min(length))
        }
    }
}

/// Digits. A number that is too large is larger than any file.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(
        digits
            .iter()
            .fold(0, |sum: u64, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'))),
    )
}

fn parse_date(text: &[u8]) -> Option<SystemTime> {
    let parsed: Timestamp = jiff::fmt::rfc2822::parse(std::str::from_utf8(text).ok()?).ok()?.timestamp();
    SystemTime::try_from(parsed).ok()
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "Wed, 25 Nov 2026 14:16:18 GMT";
    const EARLIER: &str = "Wed, 25 Nov 2026 14:16:17 GMT";
    const LATER: &str = "Wed, 25 Nov 2026 14:16:19 GMT";

    fn asked(fields: &str) -> Selection {
        asked_at(fields, Duration::from_secs(3600))
    }

    fn asked_at(fields: &str, age: Duration) -> Selection {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        let modified = parse_date(DATE.as_bytes()).unwrap() + Duration::from_millis(700);
        let of = Validators { etag: "\"x\"", modified, modified_text: DATE, length: 1000 };
        select(head.as_bytes(), &of, true, modified + age)
    }

    #[test]
    fn preconditions_are_evaluated_in_the_order_of_rfc_9110() {
        use Selection::{Failed, NotModified, Whole};
        for (fields, expected) in [
            ("A: b".to_owned(), Whole),
            ("If-Match: \"x\"".to_owned(), Whole),
            ("if-match: *".to_owned(), Whole),
            ("If-Match: \"y\", \"x\"".to_owned(), Whole),
            ("If-Match: \"y\"\r\nIf-Match: \"x\"".to_owned(), Whole),
            ("If-Match: W/\"x\"".to_owned(), Failed),
            ("If-Match: \"y\"".to_owned(), Failed),
            ("If-Match: x".to_owned(), Failed),
            ("If-None-Match: \"x\"".to_owned(), NotModified),
            ("If-None-Match: W/\"x\"".to_owned(), NotModified),
            ("If-None-Match: *".to_owned(), NotModified),
            ("If-None-Match: \"a,b\" , ,\"x\"".to_owned(), NotModified),
            ("If-None-Match: \"y\"".to_owned(), Whole),
            ("If-None-Match: \"x".to_owned(), Whole),
            (format!("If-Modified-Since: {DATE}"), NotModified),
            (format!("If-Modified-Since: {LATER}"), Whole),
            (format!("If-Modified-Since: {EARLIER}"), Whole),
            (format!("If-None-Match: \"y\"\r\nIf-Modified-Since: {DATE}"), Whole),
            (format!("If-Unmodified-Since: {DATE}"), Whole),
            (format!("If-Unmodified-Since: {LATER}"), Whole),
            (format!("If-Unmodified-Since: {EARLIER}"), Failed),
            ("If-Unmodified-Since: nonsense".to_owned(), Whole),
            (format!("If-Match: \"x\"\r\nIf-Unmodified-Since: {EARLIER}"), Whole),
            ("If-Match: \"x\"\r\nIf-None-Match: \"x\"".to_owned(), NotModified),
            ("If-Match: \"y\"\r\nIf-None-Match: \"x\"".to_owned(), Failed),
            ("If-None-Match: \"x\"\r\nRange: bytes=5000-".to_owned(), NotModified),
        ] {
            assert_eq!(asked(&fields), expected, "{fields}");
        }
    }

    #[test]
    fn one_range_is_a_part_and_several_are_the_whole() {
        use Selection::{Part, Unsatisfiable, Whole};
        for (range, expected) in [
            ("bytes=0-0", Part(0..1)),
            ("bytes=0-999", Part(0..1000)),
            ("bytes=0-", Part(0..1000)),
            ("Bytes=10-19", Part(10..20)),
            ("bytes=990-2000", Part(990..1000)),
            ("bytes=-1", Part(999..1000)),
            ("bytes=-5000", Part(0..1000)),
            ("bytes=0-99999999999999999999999", Part(0..1000)),
            ("bytes= 0-1 ,", Part(0..2)),
            ("bytes=5000-, 1-2", Part(1..3)),
            ("bytes=0-1,3-4", Whole),
            ("bytes=1000-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=1000-1001, 2000-", Unsatisfiable),
            ("bytes=2-1", Whole),
            ("bytes=a-b", Whole),
            ("bytes=", Whole),
            ("bytes=-", Whole),
            ("bytes=+1-2", Whole),
            ("lines=0-1", Whole),
            ("0-1", Whole),
        ] {
            assert_eq!(asked(&format!("Range: {range}")), expected, "{range}");
        }
    }

    #[test]
    fn a_range_with_a_condition_is_for_that_state_only() {
        use Selection::{Part, Whole};
        for (condition, expected) in [
            ("\"x\"", Part(0..10)),
            ("W/\"x\"", Whole),
            ("\"y\"", Whole),
            (DATE, Part(0..10)),
            (LATER, Whole),
            ("", Whole),
        ] {
            assert_eq!(asked(&format!("Range: bytes=0-9\r\nIf-Range: {condition}")), expected, "{condition}");
        }
        let fields = format!("Range: bytes=0-9\r\nIf-Range: {DATE}");
        assert_eq!(asked_at(&fields, Duration::ZERO), Whole, "it may change again within that second");
    }

    #[test]
    fn nothing_is_a_part_of_an_empty_representation() {
        let of = Validators { etag: "\"x\"", modified: UNIX_EPOCH, modified_text: DATE, length: 0 };
        let get = |range: &str| {
            let head = format!("GET / HTTP/1.1\r\nRange: {range}\r\n\r\n");
            select(head.as_bytes(), &of, true, UNIX_EPOCH)
        };
        assert_eq!(get("bytes=0-"), Selection::Unsatisfiable);
        assert_eq!(get("bytes=-1"), Selection::Unsatisfiable);
        let head = b"HEAD / HTTP/1.1\r\nRange: bytes=0-\r\n\r\n";
        assert_eq!(select(head, &of, false, UNIX_EPOCH), Selection::Whole, "only GET has ranges");
    }

    proptest::proptest! {
        #[test]
        fn a_part_lies_within_the_representation(range in "bytes=[0-9,\\- ]{0,12}", length in 0u64..50) {
            match part(range.as_bytes(), length) {
                Selection::Part(bytes) => assert!(bytes.start < bytes.end && bytes.end <= length),
                Selection::Whole | Selection::Unsatisfiable => {}
                other => panic!("{other:?}"),
            }
        }

        #[test]
        fn no_bytes_panic_it(head in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let of = Validators { etag: "\"x\"", modified: UNIX_EPOCH, modified_text: DATE, length: 7 };
            let _ = select(&head, &of, true, UNIX_EPOCH);
        }
    }
}
