//! Strips or replaces the start of a request's path before it is sent to the backend.

use super::field::{Span, values, write_field};

const FIELD: &[u8] = b"X-Forwarded-Prefix";

/// Strips `prefix` from the target in a complete request head: `/app/show?q` becomes `/show?q`, and `/app` becomes `/`.
/// The prefix is sent as `X-Forwarded-Prefix`, so that the app can build links that include it, after the prefix that a
/// trusted proxy has already stripped, if any.
///
/// Does nothing if the target doesn't start with the prefix.
pub fn strip(head: &mut Vec<u8>, prefix: &[u8]) {
    if prefix.is_empty() || !head.ends_with(b"\r\n\r\n") || !replace(head, prefix, b"") {
        return;
    }
    let outer = values(head, FIELD).filter(|value| !value.is_empty()).last();
    if let Some(outer) = outer.map(|value| Span::of(value, head)) {
        let slash = usize::from(outer.of_head(head).ends_with(b"/"));
        head.splice(outer.end() - slash..outer.end(), prefix.iter().copied());
    } else {
        head.truncate(head.len() - 2);
        write_field(head, FIELD, prefix);
        head.extend_from_slice(b"\r\n");
    }
}

/// Replaces `from`, with which the target in a head begins, by `to`: `/old/x?q` becomes `/new/x?q`. A target that would
/// become empty becomes `/`. Returns whether the target began so.
pub fn replace(head: &mut Vec<u8>, from: &[u8], to: &[u8]) -> bool {
    let Some(start) = head.iter().position(|&b| b == b' ').map(|space| space + 1) else { return false };
    let target = &head[start..];
    if !target.starts_with(b"/") || !target.starts_with(from) {
        return false;
    }
    let end = start + from.len();
    let slash: &[u8] = if to.is_empty() && head.get(end) != Some(&b'/') { b"/" } else { b"" };
    head.splice(start..end, to.iter().chain(slash).copied());
    true
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
    fn a_prefix_is_replaced_and_the_target_stays_a_path() {
        for (from, to, target, expected) in [
            ("/old", "/new", "/old/x?q=/old", "/new/x?q=/old"),
            ("/old", "/new", "/old", "/new"),
            ("/old", "/new", "/old?q", "/new?q"),
            ("/old", "", "/old?q", "/?q"),
            ("/old", "", "/old/x", "/x"),
            ("", "/new", "/x", "/new/x"),
            ("", "/new", "/?q", "/new/?q"),
            ("", "/new", "*", "*"),
            ("/old/", "/new/", "/old/", "/new/"),
            ("/old", "/new", "/other", "/other"),
        ] {
            let mut head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
            assert_eq!(
                replace(&mut head, from.as_bytes(), to.as_bytes()),
                target != "*" && target != "/other"
            );
            let expected = format!("GET {expected} HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(String::from_utf8(head).unwrap(), expected);
        }
    }

    #[test]
    fn the_prefix_follows_what_a_proxy_before_us_took_off() {
        for (told, expected) in [("/outer", "/outer/app"), ("/outer/", "/outer/app"), ("/", "/app")] {
            let rest = "\r\nVia: 1.1 edge\r\n\r\n";
            let mut head = format!("GET /app/x HTTP/1.1\r\nx-forwarded-PREFIX: {told}{rest}").into_bytes();
            strip(&mut head, b"/app");
            let expected = format!("GET /x HTTP/1.1\r\nx-forwarded-PREFIX: {expected}{rest}");
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
