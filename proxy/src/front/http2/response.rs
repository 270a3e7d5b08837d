//! A response's head, which was checked and rewritten as HTTP/1, as a header list.

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

/// The end of a head.
const END: &[u8] = b"\r\n\r\n";

/// A head at the front of these bytes, and its length; `None`: it isn't complete, which can't happen here.
pub(super) fn head(bytes: &[u8]) -> Option<(Response<()>, usize)> {
    let length = memchr::memmem::find(bytes, END)? + END.len();
    let (line, fields) = split_line(&bytes[..length])?;
    // "HTTP/1.1 200 OK"
    let status = StatusCode::from_bytes(line.get(9..12)?).ok()?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    let mut fields = self::fields(fields)?;
    // uh-proxy's own answers have it.
    fields.remove(CONNECTION);
    *response.headers_mut() = fields;
    Some((response, length))
}

/// Field lines, with or without the empty line that ends them.
pub(super) fn fields(mut lines: &[u8]) -> Option<HeaderMap> {
    let mut fields = HeaderMap::with_capacity(16);
    while let Some((line, rest)) = split_line(lines) {
        lines = rest;
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        fields.try_append(name, value).ok()?;
    }
    Some(fields)
}

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b'\n', bytes)?;
    let line = &bytes[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_head_is_read_up_to_its_end() {
        let bytes = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\nlink: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\nbody";
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
    fn trailers_may_end_with_an_empty_line() {
        let trailers = fields(b"X-Sum: 1\r\nx-b:2 \r\n\r\n").unwrap();
        assert_eq!(
            (&trailers["x-sum"], &trailers["x-b"]),
            (&HeaderValue::from_static("1"), &HeaderValue::from_static("2"))
        );
        assert!(fields(b"\r\n").unwrap().is_empty() && fields(b"").unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (head(&bytes), fields(&bytes));
        }
    }
}
