//! A response's head, which was checked and rewritten as HTTP/1, as a header list.

use http::header::{CONNECTION, HeaderMap};
use http::{Response, StatusCode};

use super::lines;

/// The end of a head.
const END: &[u8] = b"\r\n\r\n";

/// A head at the front of these bytes, and its length; `None`: it isn't complete, which can't happen here. `map` is an
/// empty one to use. `first`: it is the first response on its connection.
pub(super) fn head(bytes: &[u8], mut map: HeaderMap, first: bool) -> Option<(Response<()>, usize)> {
    let (line, lines) = split_line(bytes)?;
    // "HTTP/1.1 200 OK"
    let status = StatusCode::from_bytes(line.get(9..12)?).ok()?;
    let rest = read_fields(lines, first, &mut map)?;
    let length = bytes.len() - rest.len();
    if !bytes[..length].ends_with(END) {
        return None;
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = map;
    Some((response, length))
}

/// Trailers: field lines, with or without the empty line that ends them.
pub(super) fn trailers(lines: &[u8]) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    read_fields(lines, false, &mut map)?;
    Some(map)
}

/// Reads field lines up to an empty one, and returns what follows. `first`: see [`head`].
fn read_fields<'a>(bytes: &'a [u8], first: bool, map: &mut HeaderMap) -> Option<&'a [u8]> {
    lines::read(bytes, |name, mut value| {
        // uh-proxy's own answers have it.
        if name == CONNECTION {
            return true;
        }
        if name == lines::REQUEST_ID {
            // In the client's table (RFC 7541), its value would be found never again, and drive out what would. Besides,
            // `h2` compares a value with all that it has for a name. The first one brings only the name there.
            value.set_sensitive(!first);
        }
        map.try_append(name, value).is_ok()
    })
}

/// A line without its end, and what follows.
pub(super) fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b'\n', bytes)?;
    let line = &bytes[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    #[test]
    fn a_head_is_read_up_to_its_end() {
        let bytes = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\nlink: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\nbody";
        let head = |bytes| head(bytes, HeaderMap::new(), false);
        let (hints, length) = head(bytes).unwrap();
        assert_eq!(hints.status(), 103);
        let links: Vec<_> = hints.headers().get_all("link").iter().collect();
        assert_eq!(links, ["a", "b"]);
        let own = head(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nX-A: b\r\n\r\n").unwrap().0;
        assert_eq!((own.headers().len(), own.status().as_u16()), (1, 404));
        let (ok, rest) = head(&bytes[length..]).unwrap();
        assert_eq!((ok.status().as_u16(), ok.headers().len()), (200, 0));
        assert_eq!(&bytes[length + rest..], b"body");
    }

    #[test]
    fn a_request_id_is_kept_out_of_the_clients_table_but_for_the_first() {
        let bytes = b"HTTP/1.1 200 OK\r\nX-Request-Id: abc\r\nX-Other: abc\r\n\r\n";
        for first in [true, false] {
            let (response, _) = head(bytes, HeaderMap::new(), first).unwrap();
            let sensitive = ["x-request-id", "x-other"].map(|name| response.headers()[name].is_sensitive());
            assert_eq!(sensitive, [!first, false]);
        }
    }

    #[test]
    fn trailers_may_end_with_an_empty_line() {
        let fields = trailers(b"X-Sum: 1\r\nx-b:2 \r\n\r\n").unwrap();
        assert_eq!(
            (&fields["x-sum"], &fields["x-b"]),
            (&HeaderValue::from_static("1"), &HeaderValue::from_static("2"))
        );
        assert!(trailers(b"\r\n").unwrap().is_empty() && trailers(b"").unwrap().is_empty());
    }

    #[test]
    fn a_head_without_its_end_is_none() {
        for bytes in [&b"HTTP/1.1 200 OK\r\n"[..], b"HTTP/1.1 200 OK\r\nA: b\r\n", b"HTTP/1.1 200 OK"] {
            assert!(head(bytes, HeaderMap::new(), false).is_none());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (head(&bytes, HeaderMap::new(), false), trailers(&bytes));
        }
    }
}
