//! Takes a service's path prefix off a request that is about to go to its backend, and tells the backend so.

/// Takes `prefix` off the target in a whole request head: `/app/show?q` becomes `/show?q`, and `/app` becomes `/`. The
/// prefix is added as `X-Forwarded-Prefix`, so that the app can make links that lead back to it.
///
/// Does nothing if the target does not start with the prefix: a head is never left half changed.
pub fn strip(head: &mut Vec<u8>, prefix: &[u8]) {
    let Some(start) = head.iter().position(|&b| b == b' ').map(|space| space + 1) else { return };
    if prefix.is_empty() || !head[start..].starts_with(prefix) || !head.ends_with(b"\r\n\r\n") {
        return;
    }
    let end = start + prefix.len();
    if head.get(end) == Some(&b'/') {
        head.drain(start..end);
    } else {
        head.splice(start..end, [b'/']);
    }
    head.truncate(head.len() - 2);
    for part in [b"X-Forwarded-Prefix: ", prefix, b"\r\n\r\n"] {
        head.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_goes_and_nothing_else_changes() {
        for (target, expected) in [
            ("/app/show", "/show"),
            ("/app", "/"),
            ("/app/", "/"),
            ("/app?a=b", "/?a=b"),
            ("/app/x?a=%zz;/app", "/x?a=%zz;/app"),
            ("/app//x%2f/", "//x%2f/"),
            ("/app/app/x", "/app/x"),
        ] {
            let mut head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
            strip(&mut head, b"/app");
            let expected = format!("GET {expected} HTTP/1.1\r\nHost: a\r\nX-Forwarded-Prefix: /app\r\n\r\n");
            assert_eq!(String::from_utf8(head).unwrap(), expected);
        }
    }

    #[test]
    fn a_head_without_the_prefix_is_left_alone() {
        for (head, prefix) in [
            ("GET /other HTTP/1.1\r\n\r\n", "/app"),
            ("OPTIONS * HTTP/1.1\r\n\r\n", ""),
            ("GET", "/app"),
            ("GET /app", "/app"),
        ] {
            let mut bytes = head.as_bytes().to_vec();
            strip(&mut bytes, prefix.as_bytes());
            assert_eq!(bytes, head.as_bytes());
        }
    }
}
