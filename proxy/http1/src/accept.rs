//! Which content codings a client accepts (RFC 9110 §12.5.3), and the qualities in its `Accept…` fields.

use super::field::values;

/// A content coding that a representation may have been stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentCoding {
    /// Brotli.
    Brotli,
    /// Zstandard.
    Zstd,
    /// gzip.
    Gzip,
}

impl ContentCoding {
    /// All of them. Where a client likes several alike, the smaller result comes first.
    pub const ALL: [Self; 3] = [Self::Brotli, Self::Zstd, Self::Gzip];

    /// Its name in `Content-Encoding`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    fn is(self, name: &[u8]) -> bool {
        let also = self == Self::Gzip && name.eq_ignore_ascii_case(b"x-gzip");
        also || name.eq_ignore_ascii_case(self.name().as_bytes())
    }
}

/// Content codings, the preferred one first.
pub type Codings = [Option<ContentCoding>; ContentCoding::ALL.len()];

/// The codings that the client with this head accepts. Without `Accept-Encoding`, none: it may not know them.
#[must_use]
pub fn codings(head: &[u8]) -> Codings {
    let mut found = ContentCoding::ALL.map(|coding| (coding, None));
    let mut any = None;
    for value in values(head, b"accept-encoding") {
        for item in value.split(|&b| b == b',') {
            let mut parts = item.split(|&b| b == b';').map(<[u8]>::trim_ascii);
            let Some(name) = parts.next() else { continue };
            let weight = parts.find_map(quality).unwrap_or(1000);
            if name == b"*" {
                any = Some(weight);
            }
            for (_, known) in found.iter_mut().filter(|(coding, _)| coding.is(name)) {
                *known = Some(weight);
            }
        }
    }
    let mut found = found.map(|(coding, weight)| (coding, weight.or(any).unwrap_or(0)));
    // Stable: what is liked alike keeps its order.
    found.sort_by_key(|&(_, weight)| std::cmp::Reverse(weight));
    found.map(|(coding, weight)| (weight > 0).then_some(coding))
}

/// `q=0.8` → 800. A malformed quality counts as 0.
#[must_use]
pub fn quality(parameter: &[u8]) -> Option<u16> {
    let value = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="))?;
    let (whole, fraction) = match value {
        [whole] => (whole, &b""[..]),
        [whole, b'.', fraction @ ..] if fraction.len() <= 3 => (whole, fraction),
        _ => return Some(0),
    };
    if !matches!(whole, b'0' | b'1') || !fraction.iter().all(u8::is_ascii_digit) {
        return Some(0);
    }
    let digits = fraction.iter().chain(b"000").take(3);
    let thousandths = digits.fold(u16::from(whole - b'0'), |sum, digit| sum * 10 + u16::from(digit - b'0'));
    Some(thousandths.min(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(field: &str) -> Vec<&'static str> {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
        codings(head.as_bytes()).into_iter().flatten().map(ContentCoding::name).collect()
    }

    #[test]
    fn what_is_accepted_comes_in_the_order_of_preference() {
        for (field, expected) in [
            ("accept-encoding: gzip, deflate, br, zstd", &["br", "zstd", "gzip"][..]),
            ("Accept-Encoding: gzip", &["gzip"]),
            ("Accept-Encoding: X-GZIP", &["gzip"]),
            ("Accept-Encoding: gzip;q=1, br;q=0.5", &["gzip", "br"]),
            ("Accept-Encoding: br ; q=0.500 , gzip;q=0.5", &["br", "gzip"]),
            ("Accept-Encoding: *", &["br", "zstd", "gzip"]),
            ("Accept-Encoding: *;q=0.1, br;q=0", &["zstd", "gzip"]),
            ("Accept-Encoding: gzip;q=0", &[]),
            ("Accept-Encoding: gzip;q=2", &[]),
            ("Accept-Encoding: identity", &[]),
            ("Accept-Encoding:", &[]),
            ("Accept-Encoding: gzip\r\nAccept-Encoding: br", &["br", "gzip"]),
            ("Accept: */*", &[]),
        ] {
            assert_eq!(names(field), expected, "{field}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_it(head in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = codings(&head);
            let _ = quality(&head);
        }
    }
}
