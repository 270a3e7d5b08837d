//! Changes that know of lines, words and numbers. libFuzzer's own know of neither: a field that lands where a field can be is
//! one in thousands.

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
    let word = *random.choice(words).unwrap_or(&"");
    let line = line_at(bytes, random.usize(..=bytes.len()));
    let token = token_at(bytes, random.usize(..=bytes.len()));
    match random.u8(..8) {
        0 | 1 => replace(bytes, line.0..line.0, word.as_bytes()),
        2 => replace(bytes, token.0..token.0, word.as_bytes()),
        3 => replace(bytes, token.0..token.1, word.as_bytes()),
        4 => replace(bytes, token.0..token.1, random.choice(NUMBERS).unwrap_or(&"").as_bytes()),
        5 => replace(bytes, token.0..token.1, b""),
        6 => replace(bytes, line.0..line.1, b""),
        _ => {
            let copy = bytes[line.0..line.1].to_vec();
            let to = line_at(bytes, random.usize(..=bytes.len())).0;
            replace(bytes, to..to, &copy);
        }
    }
}

fn replace(bytes: &mut Vec<u8>, range: std::ops::Range<usize>, with: &[u8]) {
    bytes.splice(range, with.iter().copied());
}

/// The line around this place, its end included.
fn line_at(bytes: &[u8], at: usize) -> (usize, usize) {
    let start = bytes[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |before| before + 1);
    let end = bytes[at..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |rest| at + rest + 1);
    (start, end)
}

/// The word around this place; empty between two.
fn token_at(bytes: &[u8], at: usize) -> (usize, usize) {
    let ends = |&byte: &u8| !(byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let start = bytes[..at].iter().rposition(ends).map_or(0, |before| before + 1);
    let end = bytes[at..].iter().position(ends).map_or(bytes.len(), |rest| at + rest);
    (start, end)
}
