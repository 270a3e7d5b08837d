//! Field lines of responses, as names and values. Most lines of an app are the same in each response, so a worker thread
//! remembers those that it has seen twice, and in which order: comparing a line with the one that is expected is cheaper
//! than finding its end, checking it and copying its parts.

use std::cell::RefCell;

use http::header::{HeaderName, HeaderValue, SET_COOKIE};

use super::response::split_line;

/// Lines that a thread remembers at most.
const MOST_LINES: usize = 64;

/// How many lines with the same lower bits in their hashes are remembered. With one, two lines of every response that
/// happen to meet would drive out each other: of ten lines, every second time.
const TOGETHER: usize = 4;

/// Longer lines aren't remembered.
const MOST_BYTES: usize = 128;

/// New in each response.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

thread_local! {
    static REMEMBERED: RefCell<Remembered> = const { RefCell::new(Remembered::EMPTY) };
}

/// What a thread remembers.
struct Remembered {
    /// Groups of places, by the hashes of the lines.
    places: [Place; MOST_LINES],
    /// How many lines have been new: the next one takes another place of its group.
    new: usize,
    /// The place of the first known line of the last head.
    first: usize,
}

/// A line's place.
struct Place {
    known: Option<Known>,
    /// The hash of a line that wasn't known. It becomes the known one if it comes again, and a line that comes only once
    /// doesn't.
    seen: u64,
    /// The place of the known line that came after it the last time: it is expected again.
    next: usize,
}

/// A line, and what it means.
struct Known {
    /// With its end.
    line: Box<[u8]>,
    name: HeaderName,
    value: HeaderValue,
}

impl Known {
    fn field(&self) -> (HeaderName, HeaderValue) {
        (self.name.clone(), self.value.clone())
    }
}

/// The end of a line that may be remembered: as uh-proxy writes it.
const END: &[u8] = b"\r\n";

/// Reads field lines up to an empty one, and returns what follows. Each field is given to `add`; `None`: a line has none,
/// or `add` doesn't take one.
pub(super) fn read(lines: &[u8], add: impl FnMut(HeaderName, HeaderValue) -> bool) -> Option<&[u8]> {
    REMEMBERED.with_borrow_mut(|remembered| remembered.read(lines, add))
}

impl Remembered {
    const EMPTY: Self = Self { places: [const { Place::EMPTY }; MOST_LINES], new: 0, first: 0 };

    fn read<'a>(
        &mut self,
        mut lines: &'a [u8],
        mut add: impl FnMut(HeaderName, HeaderValue) -> bool,
    ) -> Option<&'a [u8]> {
        let (mut last, mut expected) = (None, self.first);
        while !lines.is_empty() {
            let known = self.places[expected].known.as_ref();
            if let Some(known) = known.filter(|known| lines.starts_with(&known.line)) {
                lines = &lines[known.line.len()..];
                let (name, value) = known.field();
                last = Some(expected);
                expected = self.places[expected].next;
                if !add(name, value) {
                    return None;
                }
                continue;
            }
            let Some((line, rest)) = split_line(lines) else { break };
            let with_end = &lines[..lines.len() - rest.len()];
            lines = rest;
            if line.is_empty() {
                break;
            }
            let ((name, value), place) = self.find(line, with_end)?;
            if let Some(place) = place {
                match last {
                    Some(last) => self.places[last].next = place,
                    None => self.first = place,
                }
                last = Some(place);
                expected = self.places[place].next;
            }
            if !add(name, value) {
                return None;
            }
        }
        Some(lines)
    }

    /// The field of a line, and its place if it is remembered.
    fn find(&mut self, line: &[u8], with_end: &[u8]) -> Option<((HeaderName, HeaderValue), Option<usize>)> {
        if line.len() > MOST_BYTES || !with_end.ends_with(END) {
            return Some((field(line)?, None));
        }
        let hash = hash(with_end);
        let group = hash as usize % (MOST_LINES / TOGETHER) * TOGETHER;
        let mut places = self.places[group..group + TOGETHER].iter();
        let known =
            |place: &Place| place.known.as_ref().filter(|known| *known.line == *with_end).map(Known::field);
        if let Some((at, field)) =
            places.clone().enumerate().find_map(|(at, place)| Some((at, known(place)?)))
        {
            return Some((field, Some(group + at)));
        }
        let (name, value) = field(line)?;
        let Some(at) = places.position(|place| place.seen == hash) else {
            self.places[group + self.new % TOGETHER].seen = hash;
            self.new = self.new.wrapping_add(1);
            return Some(((name, value), None));
        };
        if !may_be_remembered(&name) {
            return Some(((name, value), None));
        }
        let index = group + at;
        let place = &mut self.places[index];
        place.known = Some(Known { line: with_end.into(), name: name.clone(), value: value.clone() });
        Some(((name, value), Some(index)))
    }
}

impl Place {
    const EMPTY: Self = Self { known: None, seen: 0, next: 0 };
}

/// What is secret, or never comes again, isn't.
fn may_be_remembered(name: &HeaderName) -> bool {
    *name != SET_COOKIE && *name != REQUEST_ID
}

/// The field of a line; `None`: it isn't one.
fn field(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = memchr::memchr(b':', line)?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    let is_request_id = name.eq_ignore_ascii_case(REQUEST_ID.as_str().as_bytes());
    let name = if is_request_id { REQUEST_ID } else { HeaderName::from_bytes(name).ok()? };
    Some((name, HeaderValue::from_bytes(value).ok()?))
}

/// Takes eight bytes at a time. Lines that are made to collide gain nothing: each is read, as without this.
fn hash(line: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| {
        let mixed = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 32)
    };
    let (words, rest) = line.as_chunks::<8>();
    let hash = words.iter().fold(line.len() as u64, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    rest.iter().fold(hash, |hash, &byte| mix(hash, u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_known(line: &str) -> bool {
        REMEMBERED.with_borrow(|remembered| {
            let known = remembered.places.iter().flat_map(|place| &place.known);
            known.into_iter().any(|known| *known.line == *format!("{line}\r\n").as_bytes())
        })
    }

    /// The names and values of a head.
    type Fields = Vec<(String, Vec<u8>)>;

    /// The fields of a head, and what follows it.
    fn fields(bytes: &[u8]) -> Option<(Fields, &[u8])> {
        let mut fields = Vec::new();
        let rest = read(bytes, |name, value| {
            fields.push((name.as_str().to_owned(), value.as_bytes().to_vec()));
            true
        })?;
        Some((fields, rest))
    }

    fn one(line: &str) -> Option<(String, Vec<u8>)> {
        let head = format!("{line}\r\n\r\nrest");
        let (mut fields, rest) = fields(head.as_bytes())?;
        assert_eq!((fields.len(), rest), (1, &b"rest"[..]));
        fields.pop()
    }

    #[test]
    fn a_line_that_comes_again_is_remembered_and_means_the_same() {
        let line = "Content-Type: text/html";
        for known in [false, true, true] {
            assert_eq!(one(line), Some(("content-type".to_owned(), b"text/html".to_vec())));
            assert_eq!(is_known(line), known);
        }
    }

    #[test]
    fn what_is_secret_or_unique_or_long_is_not_remembered() {
        let long = format!("x-a: {}", "a".repeat(MOST_BYTES));
        for line in ["Set-Cookie: a=b", "X-Request-Id: abc", &long, "no field", "x y: z"] {
            for _ in 0..3 {
                let _ = one(line);
            }
            assert!(!is_known(line), "{line:?}");
        }
        assert!(one("no field").is_none() && one("x y: z").is_none());
    }

    #[test]
    fn lines_that_come_once_do_not_drive_out_one_that_stays() {
        one("server: app");
        one("server: app");
        for n in 0..10_000 {
            one(&format!("etag: {n}"));
        }
        assert!(is_known("server: app"));
    }

    #[test]
    fn lines_that_meet_are_all_remembered() {
        let meets =
            |line: &String| (hash(format!("{line}\r\n").as_bytes()) as usize).is_multiple_of(MOST_LINES);
        let lines: Vec<_> = (0..).map(|n| format!("etag: {n}")).filter(meets).take(TOGETHER).collect();
        for _ in 0..3 {
            lines.iter().for_each(|line| assert!(one(line).is_some()));
        }
        let known = lines.iter().filter(|line| is_known(line)).count();
        assert_eq!(known, TOGETHER);
    }

    proptest! {
        #[test]
        fn a_head_means_the_same_whatever_came_before(
            heads in prop::collection::vec(prop::collection::vec(("[a-c]{1,2}", "[ab]{0,2}", any::<bool>()), 0..6), 1..30),
        ) {
            for head in heads {
                let mut text = String::new();
                for (name, value, bare) in &head {
                    text.push_str(&format!("{name}: {value}{}", if *bare { "\n" } else { "\r\n" }));
                }
                text.push_str("\r\nbody");
                let expected: Vec<_> =
                    head.iter().map(|(name, value, _)| (name.clone(), value.clone().into_bytes())).collect();
                prop_assert_eq!(fields(text.as_bytes()), Some((expected, &b"body"[..])));
            }
        }
    }
}
