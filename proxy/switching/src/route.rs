//! Finds the service of a request: first by host, then by the longest path prefix among that host's services.
//! Pure, and on the path of every request: one or two hash lookups, however many services there are.
//!
//! Hosts are compared without case, port and final dot. Paths are compared byte for byte as the client wrote them:
//! nothing is decoded, so `/%61pi` is not under `/api`. A path that leaves a prefix through dot segments, in any
//! spelling that an app may understand, isn't under it either: `/api/../admin` doesn't go to the service at `/api`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::Ipv6Addr;

use memchr::memchr2;

/// The longest DNS name; a longer host matches no service.
pub const MAX_HOST_BYTES: usize = 253;

/// All routes. Services are identified by index.
#[derive(Debug, Default)]
pub struct Routes {
    /// By host, in lowercase.
    exact: ByHost,
    /// Wildcards, by what follows a host's first label, including the dot.
    wildcard: ByHost,
    /// For every host that no service names.
    any: Vec<Route>,
}

type ByHost = HashMap<Box<[u8]>, Vec<Route>, BuildHasherDefault<HostHasher>>;

/// Hashes a host, eight bytes at a time. Clients can't provoke collisions: all keys are from the configuration.
#[derive(Debug, Default)]
struct HostHasher(u64);

impl Hasher for HostHasher {
    fn write(&mut self, bytes: &[u8]) {
        // An odd number with about as many ones as zeros; the same as in rustc's own hasher.
        const FACTOR: u64 = 0xf135_7aea_2e62_a9c5;
        let (chunks, rest) = bytes.as_chunks();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        for &chunk in chunks.iter().chain([&last]) {
            self.0 = self.0.wrapping_add(u64::from_le_bytes(chunk)).wrapping_mul(FACTOR).rotate_left(26);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// One path prefix of one host; the longest ones come first.
#[derive(Debug)]
struct Route {
    /// Without its final slash, so empty for every path.
    prefix: Box<[u8]>,
    service: usize,
}

impl Routes {
    /// Adds a service for these hosts, as a configuration names them, and this path prefix.
    pub fn add(&mut self, service: usize, hosts: &[String], prefix: &str) {
        let prefix = prefix.trim_end_matches('/').as_bytes();
        for host in hosts {
            let routes = match host.strip_prefix('*') {
                Some(suffix) => self.wildcard.entry(suffix.as_bytes().into()).or_default(),
                None => self.exact.entry(host.as_bytes().into()).or_default(),
            };
            insert(routes, Route { prefix: prefix.into(), service });
        }
        if hosts.is_empty() {
            insert(&mut self.any, Route { prefix: prefix.into(), service });
        }
    }

    /// The service for a request, by its `Host` and the path of its target.
    #[must_use]
    pub fn find(&self, host: &[u8], path: &[u8]) -> Option<usize> {
        let named = !self.exact.is_empty() || !self.wildcard.is_empty();
        let mut room = HostRoom::default();
        let routes = if named { self.of_host(room.canonical(without_port(host))) } else { &self.any };
        routes.iter().find(|route| is_under(path, &route.prefix)).map(|route| route.service)
    }

    fn of_host(&self, host: &[u8]) -> &[Route] {
        if let Some(routes) = self.exact.get(host) {
            return routes;
        }
        let dot = host.iter().position(|&b| b == b'.').filter(|&dot| dot > 0);
        let routes = dot.and_then(|dot| self.wildcard.get(&host[dot..]));
        routes.unwrap_or(&self.any)
    }
}

fn insert(routes: &mut Vec<Route>, route: Route) {
    let place = routes.partition_point(|other| other.prefix.len() >= route.prefix.len());
    routes.insert(place, route);
}

/// Room to write a host in its canonical form, without an allocation.
struct HostRoom {
    bytes: [u8; MAX_HOST_BYTES],
    used: usize,
}

impl Default for HostRoom {
    fn default() -> Self {
        Self { bytes: [0; MAX_HOST_BYTES], used: 0 }
    }
}

impl HostRoom {
    /// In lowercase; an IPv6 address in its shortest form. Empty, which matches no service, if it is too long.
    fn canonical(&mut self, host: &[u8]) -> &[u8] {
        self.used = 0;
        match ipv6(host) {
            Some(address) => {
                // It fits: 47 bytes at most.
                let _ = write!(self, "[{address}]");
            }
            None if host.len() <= MAX_HOST_BYTES => {
                self.bytes[..host.len()].copy_from_slice(host);
                self.bytes[..host.len()].make_ascii_lowercase();
                self.used = host.len();
            }
            None => {}
        }
        &self.bytes[..self.used]
    }
}

impl std::fmt::Write for HostRoom {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let place = self.bytes.get_mut(self.used..self.used + text.len()).ok_or(std::fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.used += text.len();
        Ok(())
    }
}

/// The address in `[::1]`.
#[must_use]
pub fn ipv6(host: &[u8]) -> Option<Ipv6Addr> {
    let inner = host.strip_prefix(b"[")?.strip_suffix(b"]")?;
    std::str::from_utf8(inner).ok()?.parse().ok()
}

/// A host as configurations name it: without its port and its final dot, in lowercase, an IPv6 address in its shortest form.
#[must_use]
pub fn canonical(host: &[u8]) -> String {
    let mut room = HostRoom::default();
    String::from_utf8(room.canonical(without_port(host)).to_vec()).unwrap_or_default()
}

/// A host without its port and its final dot.
#[must_use]
pub fn without_port(host: &[u8]) -> &[u8] {
    let end = match host.iter().rposition(|&b| b == b':') {
        // `[::1]:80` has a port, `[::1]` has none.
        Some(colon) if host[colon..].contains(&b']') => host.len(),
        Some(colon) => colon,
        None => host.len(),
    };
    host[..end].strip_suffix(b".").unwrap_or(&host[..end])
}

/// Whether a path is under a prefix: `/app` holds `/app`, `/app/x` and `/app?q`, not `/apple`, nor `/app/../x`.
/// The prefix has no final slash; an empty one holds every path.
#[must_use]
pub fn is_under(path: &[u8], prefix: &[u8]) -> bool {
    starts_with(path, prefix) && (prefix.is_empty() || !climbs_out(&path[prefix.len()..]))
}

/// Whether a path starts with a prefix, in whole segments. It may leave it through dot segments.
#[must_use]
pub fn starts_with(path: &[u8], prefix: &[u8]) -> bool {
    let rest = path.strip_prefix(prefix);
    rest.is_some_and(|rest| prefix.is_empty() || matches!(rest.first(), None | Some(b'/' | b'?')))
}

/// Whether a path can leave the folder it starts in: whether a `..` has no segment before it to undo.
///
/// Apps read paths differently, so the worst reading counts: percent-encoded dots, slashes and backslashes are decoded,
/// parameters (`..;x`) are removed, and empty segments don't count.
#[must_use]
pub fn climbs_out(path: &[u8]) -> bool {
    let end = path.iter().position(|&b| b == b'?').unwrap_or(path.len());
    let path = &path[..end];
    if memchr2(b'.', b'%', path).is_none() {
        return false;
    }
    let mut depth = 0usize;
    for segment in path.split(|&b| b == b'/') {
        let steps = Steps::of(segment);
        match depth.checked_sub(steps.up) {
            Some(left) => depth = left,
            None => return true,
        }
        // A segment with an encoded slash may be one folder or several: it counts as one, or as none if it goes up.
        if steps.down && steps.up == 0 {
            depth += 1;
        }
    }
    false
}

/// The direction of a segment.
#[derive(Debug, Default)]
struct Steps {
    up: usize,
    down: bool,
}

impl Steps {
    fn of(segment: &[u8]) -> Self {
        let mut steps = Self::default();
        let mut rest = segment;
        loop {
            let (part, next) = split_encoded(rest);
            match dots(part) {
                Some(2) => steps.up += 1,
                Some(0 | 1) => {}
                _ => steps.down = true,
            }
            match next {
                Some(next) => rest = next,
                None => return steps,
            }
        }
    }
}

/// Splits at the first backslash or encoded separator.
fn split_encoded(segment: &[u8]) -> (&[u8], Option<&[u8]>) {
    for at in 0..segment.len() {
        let rest = &segment[at..];
        if rest[0] == b'\\' {
            return (&segment[..at], Some(&rest[1..]));
        }
        if rest.len() >= 3 && (encodes(rest, *b"%2f") || encodes(rest, *b"%5c")) {
            return (&segment[..at], Some(&rest[3..]));
        }
    }
    (segment, None)
}

/// How many dots a segment consists of; `None`: it has other characters.
fn dots(segment: &[u8]) -> Option<usize> {
    let end = segment.iter().position(|&b| b == b';').unwrap_or(segment.len());
    let (mut rest, mut count) = (&segment[..end], 0);
    while !rest.is_empty() {
        rest = match rest {
            [b'.', rest @ ..] => rest,
            _ if encodes(rest, *b"%2e") => &rest[3..],
            _ => return None,
        };
        count += 1;
    }
    Some(count)
}

fn encodes(text: &[u8], code: [u8; 3]) -> bool {
    text.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(&code))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routes(services: &[(&[&str], &str)]) -> Routes {
        let mut routes = Routes::default();
        for (index, (hosts, prefix)) in services.iter().enumerate() {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            routes.add(index, &hosts, prefix);
        }
        routes
    }

    fn found(routes: &Routes, host: &str, path: &str) -> Option<usize> {
        routes.find(host.as_bytes(), path.as_bytes())
    }

    #[test]
    fn prefixes_end_on_segment_boundaries() {
        for (path, prefix, expected) in [
            ("/app/show", "/app", true),
            ("/app", "/app", true),
            ("/app?x", "/app", true),
            ("/app/", "/app", true),
            ("/appointment", "/app", false),
            ("/App", "/app", false),
            ("/%61pp", "/app", false),
            ("//app", "/app", false),
            ("/", "", true),
            ("*", "", true),
            ("*", "/app", false),
        ] {
            assert_eq!(is_under(path.as_bytes(), prefix.as_bytes()), expected, "{path} {prefix}");
        }
    }

    #[test]
    fn a_path_that_climbs_out_of_a_prefix_is_not_under_it() {
        for path in [
            "/api/../admin",
            "/api/..",
            "/api/x/../../admin",
            "/api/%2e%2e/admin",
            "/api/.%2E/admin",
            "/api/..%2fadmin",
            "/api/..%5Cadmin",
            "/api/..\\admin",
            "/api/..;/admin",
            "/api/..;a=b/admin",
            "/api//../admin",
            "/api/./../admin",
            "/api/a%2fb/../../admin",
            "/api/x%2f..%2f../admin",
        ] {
            assert!(!is_under(path.as_bytes(), b"/api"), "{path}");
            assert!(is_under(path.as_bytes(), b""), "{path}");
        }
        for path in [
            "/api/x/../y",
            "/api/./y",
            "/api/...",
            "/api/..x",
            "/api/x..",
            "/api/a.js",
            "/api/%2e",
            "/api/x?y=/../..",
            "/api/%",
            "/api/%2",
        ] {
            assert!(is_under(path.as_bytes(), b"/api"), "{path}");
        }
    }

    #[test]
    fn a_host_loses_its_port_and_its_last_dot() {
        for (host, expected) in [
            ("a.b:80", "a.b"),
            ("a.b.", "a.b"),
            ("a.b.:80", "a.b"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("", ""),
        ] {
            assert_eq!(without_port(host.as_bytes()), expected.as_bytes());
        }
    }

    #[test]
    fn an_exact_host_comes_before_a_wildcard_and_that_before_any() {
        let routes = routes(&[(&[], "/"), (&["*.example.com"], "/"), (&["app.example.com"], "/")]);
        for (host, expected) in [
            ("app.example.com", 2),
            ("APP.Example.com.:8080", 2),
            ("b.example.com", 1),
            ("B.EXAMPLE.COM:80", 1),
            ("example.com", 0),
            (".example.com", 0),
            ("a.b.example.com", 0),
            ("bexample.com", 0),
            ("", 0),
        ] {
            assert_eq!(found(&routes, host, "/"), Some(expected), "{host}");
        }
        assert_eq!(found(&routes, &"a.".repeat(200), "/"), Some(0));
    }

    #[test]
    fn the_host_decides_before_the_path() {
        let routes = routes(&[(&[], "/"), (&["a.test"], "/api"), (&["a.test"], "/api/v2")]);
        assert_eq!(found(&routes, "a.test", "/api/v2/x"), Some(2));
        assert_eq!(found(&routes, "a.test", "/api/v22"), Some(1));
        assert_eq!(found(&routes, "a.test", "/api/v2/../x"), Some(1));
        assert_eq!(
            found(&routes, "a.test", "/other"),
            None,
            "a named host is not for the service of any host"
        );
        assert_eq!(found(&routes, "b.test", "/api"), Some(0));
    }

    #[test]
    fn an_ipv6_host_is_the_same_however_it_is_written() {
        let routes = routes(&[(&["[2001:db8::1]"], "/")]);
        for host in ["[2001:db8::1]", "[2001:DB8:0:0:0:0:0:1]:80"] {
            assert_eq!(found(&routes, host, "/"), Some(0), "{host}");
        }
        assert_eq!(found(&routes, "[2001:db8::2]", "/"), None);
        assert_eq!(found(&routes, "[x]", "/"), None);
    }

    proptest! {
        /// Compared with a plain implementation of RFC 3986 §5.2.4.
        #[test]
        fn climbing_out_is_what_removing_dot_segments_finds(segments in prop::collection::vec("[a-b]|\\.|\\.\\.", 0..8)) {
            let path = format!("/{}", segments.join("/"));
            let mut depth = 0i32;
            let mut climbed = false;
            for segment in &segments {
                depth += match segment.as_str() { "." => 0, ".." => -1, _ => 1 };
                climbed |= depth < 0;
            }
            prop_assert_eq!(climbs_out(path.as_bytes()), climbed, "{}", path);
        }

        #[test]
        fn no_bytes_panic(host in prop::collection::vec(any::<u8>(), 0..300), path in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = routes(&[(&["a.test"], "/"), (&["*.b"], "/x")]).find(&host, &path);
            let _ = climbs_out(&path);
        }
    }
}
