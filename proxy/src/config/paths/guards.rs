//! Rules that keep clients out, for paths that an app may read in another way than they are written.
//!
//! An app that decodes `/%6Detrics`, merges `//metrics`, resolves `/x/../metrics` or ignores the case of `/METRICS` serves
//! the same page for all of them. So a rule that keeps clients out also holds for every path that can be read as one of
//! its own, as prefixes hold for no path that can be read as leaving them.

use memchr::memchr;

use super::pattern::Pattern;
use super::table::PathTable;

/// Longer paths that aren't plain need an allocation.
const ROOM: usize = 512;

/// All patterns of a service's rules, as an app may read them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Guards {
    table: PathTable,
    /// Whether they are all written as they are read. Then nothing else is read in a plain path.
    plain: bool,
}

impl Guards {
    /// For these patterns. `restricts`: whether a rule keeps clients out.
    pub(super) fn new(patterns: &[(Pattern, u16)], restricts: impl Fn(u16) -> bool) -> Self {
        let read = |(pattern, rule): &(Pattern, u16)| (pattern.map(reading), *rule);
        let mut read: Vec<(Pattern, u16)> = patterns.iter().map(read).collect();
        let plain = read == patterns;
        // Two patterns that only differ in how they are written are the same now: the rule that restricts wins.
        read.sort_by_key(|(_, rule)| !restricts(*rule));
        let mut table: Vec<(Pattern, u16)> = Vec::new();
        for (pattern, rule) in read {
            if !table.iter().any(|(known, _)| *known == pattern) {
                table.push((pattern, rule));
            }
        }
        Self { table: PathTable::new(table), plain }
    }

    /// The rules for what an app may read in this path, as far as it differs from what is written.
    pub(super) fn readings(&self, path: &[u8]) -> [Option<u16>; 2] {
        let path = &path[..memchr(b'?', path).unwrap_or(path.len())];
        if !path.starts_with(b"/") || self.plain && is_plain(path) {
            return [None; 2];
        }
        let (mut room, mut heap) = ([0; ROOM], Vec::new());
        let bytes = match room.get_mut(..path.len()) {
            Some(room) => room,
            None => {
                heap.resize(path.len(), 0);
                heap.as_mut_slice()
            }
        };
        let decoded = decode(path, bytes);
        let literal = merge(bytes, decoded, Dots::Kept);
        let as_written = self.table.find_literally(&bytes[..literal]);
        let resolved = merge(bytes, literal, Dots::Resolved);
        [as_written, self.table.find_literally(&bytes[..resolved])]
    }
}

/// How an app may read the path of a pattern.
fn reading(path: &[u8]) -> Box<[u8]> {
    let mut bytes = path.to_vec();
    let decoded = decode(path, &mut bytes);
    let length = if path.starts_with(b"/") { merge(&mut bytes, decoded, Dots::Resolved) } else { decoded };
    bytes.truncate(length);
    if path.starts_with(b"/") && length == 0 { b"/"[..].into() } else { bytes.into() }
}

/// Whether a path can't be read in any other way.
fn is_plain(path: &[u8]) -> bool {
    let odd = |&b: &u8| b.is_ascii_uppercase() || matches!(b, b'%' | b'\\' | b';');
    let mut pairs = path.windows(2);
    !path.iter().any(odd)
        && !pairs.any(|pair| pair[0] == b'/' && matches!(pair[1], b'/' | b'.'))
        && (path.len() < 2 || !path.ends_with(b"/"))
}

/// Decodes a path until nothing is encoded any more, with slashes for backslashes, and in lowercase. Returns its length.
fn decode(path: &[u8], out: &mut [u8]) -> usize {
    let mut length = 0;
    for &byte in path {
        out[length] = byte;
        length += 1;
        while let Some(byte) = out[..length].last_chunk().copied().and_then(encoded) {
            length -= 2;
            out[length - 1] = byte;
        }
    }
    for byte in &mut out[..length] {
        *byte = if *byte == b'\\' { b'/' } else { byte.to_ascii_lowercase() };
    }
    length
}

/// The byte that `%41` stands for.
fn encoded([percent, high, low]: [u8; 3]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    (percent == b'%').then_some(())?;
    Some(digit(high)? << 4 | digit(low)?)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dots {
    Kept,
    Resolved,
}

/// Removes empty segments and parameters (`;x`), and resolves dot segments. Returns the path's new length.
fn merge(path: &mut [u8], length: usize, dots: Dots) -> usize {
    let (mut kept, mut at) = (0, 0);
    while at < length {
        let end = memchr(b'/', &path[at..length]).map_or(length, |slash| at + slash);
        let segment = &path[at..end];
        let name = match dots {
            Dots::Kept => segment.len(),
            Dots::Resolved => memchr(b';', segment).unwrap_or(segment.len()),
        };
        match (&segment[..name], dots) {
            (b"", _) | (b".", Dots::Resolved) => {}
            (b"..", Dots::Resolved) => {
                kept = path[..kept].iter().rposition(|&b| b == b'/').unwrap_or(0);
            }
            _ => {
                path.copy_within(at..at + name, kept + 1);
                path[kept] = b'/';
                kept += name + 1;
            }
        }
        at = end + 1;
    }
    kept
}
