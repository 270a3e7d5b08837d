//! Mutations aware of lines, words and numbers. libFuzzer's own mutations aren't: only one in thousands puts a field in
//! a valid place.

use std::ops::Range;

use fastrand::Rng;

/// Numbers at which something may change.
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "007",
    "255",
    "65535",
    "65536",
    "2147483648",
    "4294967295",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "9e99",
    "0x10",
];

/// Makes one change.
pub(crate) fn change(bytes: &mut Vec<u8>, words: &[&str], random: &mut Rng) {
    let word = random.choice(words).unwrap_or(&"").as_bytes();
    let place = random.usize(..=bytes.len());
    let (line, token) = (line_at(bytes, place), token_at(bytes, place));
    match random.u8(..10) {
        0 | 1 => replace(bytes, line.start..line.start, word),
        2 => replace(bytes, line, word),
        3 => replace(bytes, line, b""),
        4 => {
            let copy = bytes[line].to_vec();
            let to = line_at(bytes, random.usize(..=bytes.len())).start;
            replace(bytes, to..to, &copy);
        }
        5 => replace(bytes, token.start..token.start, word),
        6 => replace(bytes, place..place, word),
        7 => {
            // One in quotes needs none of its own.
            let quoted = token.start > 0 && bytes[token.start - 1] == b'"';
            let bare = word.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
            replace(bytes, token, bare.filter(|_| quoted).unwrap_or(word));
        }
        8 => replace(bytes, token, b""),
        _ => {
            let digit = bytes[place..].iter().position(u8::is_ascii_digit).map_or(place, |rest| place + rest);
            let number = random.choice(NUMBERS).unwrap_or(&"").as_bytes();
            replace(bytes, number_at(bytes, digit), number);
        }
    }
}

fn replace(bytes: &mut Vec<u8>, range: Range<usize>, with: &[u8]) {
    bytes.splice(range, with.iter().copied());
}

/// The line around this place, its end included.
fn line_at(bytes: &[u8], at: usize) -> Range<usize> {
    let around = around(bytes, at, |byte| byte == b'\n');
    around.start..(around.end + 1).min(bytes.len())
}

/// The word around this place; empty between two.
fn token_at(bytes: &[u8], at: usize) -> Range<usize> {
    around(bytes, at, |byte| !(byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)))
}

/// The digits around this place.
fn number_at(bytes: &[u8], at: usize) -> Range<usize> {
    around(bytes, at, |byte| !byte.is_ascii_digit())
}

/// What is around this place and has no such byte in it.
fn around(bytes: &[u8], at: usize, ends: fn(u8) -> bool) -> Range<usize> {
    let start = bytes[..at].iter().rposition(|&byte| ends(byte)).map_or(0, |before| before + 1);
    let end = bytes[at..].iter().position(|&byte| ends(byte)).map_or(bytes.len(), |rest| at + rest);
    start..end
}
