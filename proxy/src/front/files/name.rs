//! The file that a URL's path names, below a root. Pure.
//!
//! What is refused here names no file. The kernel enforces once more, in [`open`](super::open), that nothing outside the
//! root is reached, which this alone can't know: there are symbolic links.

/// The longest path that Linux opens (`PATH_MAX`, with its final NUL).
const MAX_BYTES: usize = 4095;

/// The one hidden name that is served (RFC 8615).
const WELL_KNOWN: &[u8] = b".well-known";

/// A path below a root: no `.` or `..`, nothing hidden, no empty segment. Empty for the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileName {
    bytes: Vec<u8>,
    /// It ended in a slash, or is empty: it can only be a directory.
    directory: bool,
}

impl FileName {
    /// The name in a URL's path, percent-decoded once. The path may begin with a slash, and have a query. `None`: it
    /// names no file.
    pub(super) fn of(path: &[u8]) -> Option<Self> {
        let path = memchr::memchr(b'?', path).map_or(path, |at| &path[..at]);
        let bytes = decoded(path.strip_prefix(b"/").unwrap_or(path))?;
        let directory = bytes.is_empty() || bytes.ends_with(b"/");
        let name = bytes.strip_suffix(b"/").unwrap_or(&bytes);
        let is_valid = name.is_empty() && bytes.is_empty() || name.split(|&b| b == b'/').all(is_visible);
        is_valid.then(|| Self { directory, bytes: name.to_vec() })
    }

    /// Whether it can only be a directory.
    pub(super) fn is_directory(&self) -> bool {
        self.directory
    }

    /// Its bytes, without slashes at either end.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The index of this directory.
    pub(super) fn index(&self) -> Self {
        const INDEX: &[u8] = b"index.html";
        let bytes =
            if self.bytes.is_empty() { INDEX.to_vec() } else { [&self.bytes, &b"/"[..], INDEX].concat() };
        Self { bytes, directory: false }
    }

    /// The same file with another ending after its own.
    pub(super) fn with(&self, ending: &str) -> Self {
        Self { bytes: [&self.bytes, ending.as_bytes()].concat(), directory: false }
    }

    /// The ending of its last segment, without the dot.
    pub(super) fn ending(&self) -> &[u8] {
        let last = self.bytes.rsplit(|&b| b == b'/').next().unwrap_or_default();
        memchr::memrchr(b'.', last).map_or(&[], |at| &last[at + 1..])
    }
}

fn is_visible(segment: &[u8]) -> bool {
    segment == WELL_KNOWN || segment.first().is_some_and(|&first| first != b'.')
}

/// Decodes once. What is encoded in the result stays encoded: `%2561` is `%61`. A byte that is only in the way of
/// separating segments, or ends names in the kernel or in other programs, names nothing.
fn decoded(path: &[u8]) -> Option<Vec<u8>> {
    if path.len() > 3 * MAX_BYTES {
        return None;
    }
    let mut name = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, after @ ..] = rest {
        let byte = if *first == b'%' {
            let [high, low, after @ ..] = after else { return None };
            rest = after;
            let byte = hex(*high)? << 4 | hex(*low)?;
            // An encoded slash isn't a separator (RFC 3986 §2.2), and no name has a slash in it.
            if byte == b'/' {
                return None;
            }
            byte
        } else {
            rest = after;
            *first
        };
        if matches!(byte, 0 | b'\\') {
            return None;
        }
        name.push(byte);
    }
    (name.len() <= MAX_BYTES).then_some(name)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &str) -> Option<String> {
        FileName::of(path.as_bytes()).map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned())
    }

    #[test]
    fn a_path_is_decoded_once() {
        for (path, expected) in [
            ("/app.js", "app.js"),
            ("/a/b/c.css?v=1/../2", "a/b/c.css"),
            ("/a%20b.txt", "a b.txt"),
            ("/%61pp.js", "app.js"),
            ("/%2561", "%61"),
            ("/%252e%252e/x", "%2e%2e/x"),
            ("/a/", "a"),
            ("/", ""),
            ("", ""),
            ("?x", ""),
            ("app.js", "app.js"),
            ("/caf%C3%A9", "café"),
            ("/.well-known/acme-challenge/x", ".well-known/acme-challenge/x"),
            ("/a..b/c...", "a..b/c..."),
            ("/a+b%3Fc%23d", "a+b?c#d"),
        ] {
            assert_eq!(name(path).as_deref(), Some(expected), "{path}");
        }
        let is_directory = |path: &str| FileName::of(path.as_bytes()).unwrap().is_directory();
        assert!(is_directory("/") && is_directory("/a/") && is_directory("/a/?x") && !is_directory("/a"));
    }

    #[test]
    fn what_could_leave_the_root_or_is_hidden_names_no_file() {
        for path in [
            "/..",
            "/../etc/passwd",
            "/a/../../b",
            "/a/..",
            "/%2e%2e/etc/passwd",
            "/%2E%2e/x",
            "/.%2e/x",
            "/./a",
            "/a/./b",
            "/.",
            "/..%2fetc",
            "/%2e%2e%2fetc",
            "/a%2fb",
            "/a%2Fb",
            "/a\\b",
            "/..\\x",
            "/a%5cb",
            "/a%00",
            "/a%00.js",
            "//a",
            "/a//b",
            "/a//",
            "//",
            "/.env",
            "/a/.git/config",
            "/%2eenv",
            "/.well-known2",
            "/%",
            "/%2",
            "/%zz",
            "/%+1",
            "/a%",
        ] {
            assert_eq!(name(path), None, "{path}");
        }
        assert_eq!(FileName::of(b"/a\0"), None);
        assert_eq!(FileName::of(&[b'a'; MAX_BYTES + 1]), None);
        assert!(FileName::of(&[b'a'; MAX_BYTES]).is_some());
    }

    #[test]
    fn names_are_put_together() {
        let name = FileName::of(b"/docs/a.tar.gz").unwrap();
        assert_eq!((name.ending(), name.with(".br").as_bytes()), (&b"gz"[..], &b"docs/a.tar.gz.br"[..]));
        assert_eq!(FileName::of(b"/").unwrap().index().as_bytes(), b"index.html");
        assert_eq!(FileName::of(b"/docs/").unwrap().index().as_bytes(), b"docs/index.html");
        assert_eq!(FileName::of(b"/a.b/c").unwrap().ending(), b"");
    }

    proptest::proptest! {
        #[test]
        fn no_name_leaves_its_root(path in "(/|\\.|%2e|%2f|%5c|a|%00|\\\\|%|b){0,12}") {
            if let Some(name) = FileName::of(path.as_bytes()) {
                let bytes = name.as_bytes();
                assert!(!bytes.contains(&0) && !bytes.starts_with(b"/") && !bytes.ends_with(b"/"));
                let segments = || bytes.split(|&b| b == b'/');
                assert!(bytes.is_empty() || segments().all(|s| !s.is_empty() && s != b"." && s != b".."));
            }
        }
    }
}
