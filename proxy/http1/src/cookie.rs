//! Cookies of uh-proxy's own, in complete heads: found in a request, hidden from the app, and added to a response where no
//! shared cache can hand them to others.

use super::field::{tokens, values, write_field};

const COOKIE: &[u8] = b"cookie";

/// Cookies whose names begin like this are uh-proxy's alone. No app gets them.
pub const OWN_PREFIX: &str = "__uh-";

/// Whether the value of a `Cookie` field may hold a cookie with [`OWN_PREFIX`]. One that doesn't can be passed on as it is.
#[must_use]
pub fn may_hold_own(field: &[u8]) -> bool {
    memchr::memmem::find(field, OWN_PREFIX.as_bytes()).is_some()
}

/// The values of all cookies with this name in the value of a `Cookie` field.
pub fn values_in<'a>(field: &'a [u8], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    pairs(field).filter_map(move |pair| value_of(pair, name.as_bytes()))
}

/// Appends a `Cookie` field without the cookies with [`OWN_PREFIX`], or nothing if it has no others.
pub fn write_without_own(field: &[u8], out: &mut Vec<u8>) {
    let mut others = pairs(field).filter(|pair| !pair.starts_with(OWN_PREFIX.as_bytes())).peekable();
    if others.peek().is_none() {
        return;
    }
    let mut separator: &[u8] = b"Cookie: ";
    for pair in others {
        out.extend_from_slice(separator);
        out.extend_from_slice(pair);
        separator = b"; ";
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether a field makes a response a page, as far as a browser is concerned: it says that the content is HTML.
#[must_use]
pub(crate) fn says_html(name: &[u8], value: &[u8]) -> bool {
    const HTML: &[u8] = b"text/html";
    let is_html = || {
        let (media_type, parameters) = value.split_at_checked(HTML.len())?;
        let ends = matches!(parameters.trim_ascii_start().first(), None | Some(b';'));
        (ends && media_type.eq_ignore_ascii_case(HTML)).then_some(())
    };
    name.eq_ignore_ascii_case(b"content-type") && is_html().is_some()
}

/// The values of all cookies with this name in a request's head: a client may have several, of other paths.
pub fn values_of<'a>(head: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    values(head, COOKIE).flat_map(pairs).filter_map(move |pair| value_of(pair, name))
}

/// Removes all cookies with this name from a request's complete head. A field that has no others is removed, too.
pub fn hide(head: &mut Vec<u8>, name: &[u8]) {
    if values_of(head, name).next().is_none() {
        return;
    }
    let mut out = Vec::with_capacity(head.len());
    for (number, line) in head.split_inclusive(|&b| b == b'\n').enumerate() {
        let colon = memchr::memchr(b':', line).filter(|_| number > 0);
        let Some((field, value)) = colon.map(|colon| (&line[..colon], line[colon + 1..].trim_ascii())) else {
            out.extend_from_slice(line);
            continue;
        };
        if !field.eq_ignore_ascii_case(COOKIE) || !pairs(value).any(|pair| value_of(pair, name).is_some()) {
            out.extend_from_slice(line);
            continue;
        }
        let kept: Vec<&[u8]> = pairs(value).filter(|pair| value_of(pair, name).is_none()).collect();
        if !kept.is_empty() {
            write_field(&mut out, field, &kept.join(&b"; "[..]));
        }
    }
    *head = out;
}

/// A cookie for a client, for as long as its browser runs.
#[derive(Debug, Clone, Copy)]
pub struct OwnCookie<'a> {
    /// Its name: a token.
    pub name: &'a str,
    /// Its value, without characters that end one.
    pub value: &'a str,
    /// The paths for which it is sent.
    pub path: &'a str,
    /// Whether it is sent over TLS only.
    pub secure: bool,
}

impl OwnCookie<'_> {
    /// The value of its `Set-Cookie` field.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { name, value, path, secure } = self;
        let path = if is_plain_path(path) { *path } else { "/" };
        let secure = if *secure { "; Secure" } else { "" };
        format!("{name}={value}; Path={path}; HttpOnly; SameSite=Lax{secure}")
    }

    /// Adds it to the complete response head that begins at `start`, if that is safe. Returns whether it was.
    ///
    /// It isn't if a shared cache may store the response: others would get the cookie. A response that says nothing
    /// about caches gets `Cache-Control: private` with it.
    pub fn add(&self, head: &mut Vec<u8>, start: usize) -> bool {
        let Some(cached) = head.get(start..).filter(|head| head.ends_with(b"\r\n\r\n")).map(cached) else {
            return false;
        };
        if cached == Cached::Shared {
            return false;
        }
        head.truncate(head.len() - 2);
        write_field(head, b"Set-Cookie", self.text().as_bytes());
        if cached == Cached::Unsaid {
            write_field(head, b"Cache-Control", b"private");
        }
        head.extend_from_slice(b"\r\n");
        true
    }
}

/// Whether a shared cache may store a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cached {
    /// It may, or it updates what one has stored.
    Shared,
    /// It must not, or must ask before each use.
    Private,
    /// The response doesn't say so, and has nothing that a cache could go by.
    Unsaid,
}

fn cached(head: &[u8]) -> Cached {
    // After the version and a space.
    let status = head.get(9..12).unwrap_or_default();
    if status == b"304" || status.first() == Some(&b'5') {
        return Cached::Shared;
    }
    let mut said = false;
    for directive in values(head, b"cache-control").flat_map(tokens) {
        said = true;
        // With fields after it, a directive is only about these.
        if [&b"private"[..], b"no-store", b"no-cache"].iter().any(|name| directive.eq_ignore_ascii_case(name))
        {
            return Cached::Private;
        }
    }
    let dated = [&b"expires"[..], b"last-modified"].iter().any(|name| values(head, name).next().is_some());
    match said || dated {
        true => Cached::Shared,
        false if status == b"101" => Cached::Private,
        false => Cached::Unsaid,
    }
}

fn pairs(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b';').map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty())
}

fn value_of<'a>(pair: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let equals = memchr::memchr(b'=', pair)?;
    (pair[..equals].trim_ascii() == name).then(|| pair[equals + 1..].trim_ascii())
}

/// Whether a path can be an attribute as it is.
fn is_plain_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b';' | b',' | b'"'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(fields: &str) -> Vec<u8> {
        format!("GET /cookie:x HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
    }

    #[test]
    fn our_cookie_is_found_and_hidden_and_all_others_stay() {
        for (fields, found, rest) in [
            ("", vec![], ""),
            ("Cookie: a=1\r\n", vec![], "Cookie: a=1\r\n"),
            ("Cookie: uh=1\r\n", vec!["1"], ""),
            ("cookie: a=1; uh=2; b=3\r\n", vec!["2"], "cookie: a=1; b=3\r\n"),
            ("Cookie: uh=1;uh=2\r\nX: y\r\nCookie: b;uh=\r\n", vec!["1", "2", ""], "X: y\r\nCookie: b\r\n"),
            ("Cookie: uhx=1; xuh=2; UH=3; a=uh=4\r\n", vec![], "Cookie: uhx=1; xuh=2; UH=3; a=uh=4\r\n"),
            ("Cookie2: uh=1\r\n", vec![], "Cookie2: uh=1\r\n"),
            ("Cookie: ; uh = 1 ;\r\n", vec!["1"], ""),
        ] {
            let mut head = request(fields);
            let values: Vec<_> =
                values_of(&head, b"uh").map(|value| String::from_utf8_lossy(value).into_owned()).collect();
            assert_eq!(values, found, "{fields}");
            hide(&mut head, b"uh");
            assert_eq!(
                String::from_utf8(head).unwrap(),
                String::from_utf8(request(rest)).unwrap(),
                "{fields}"
            );
        }
    }

    #[test]
    fn it_is_added_only_where_no_shared_cache_stores_it() {
        const SET: &str = "Set-Cookie: uh=v; Path=/app; HttpOnly; SameSite=Lax; Secure\r\n";
        let cookie = OwnCookie { name: "uh", value: "v", path: "/app", secure: true };
        for (status, fields, added) in [
            ("200 OK", "", Some("Cache-Control: private\r\n")),
            ("200 OK", "ETag: x\r\n", Some("Cache-Control: private\r\n")),
            ("401 No", "", Some("Cache-Control: private\r\n")),
            ("200 OK", "Cache-Control: no-store\r\n", Some("")),
            ("200 OK", "cache-control: max-age=0, Private, must-revalidate\r\n", Some("")),
            ("200 OK", "Cache-Control: no-cache\r\nLast-Modified: then\r\n", Some("")),
            ("101 Switching Protocols", "", Some("")),
            ("200 OK", "Cache-Control: public, max-age=0\r\n", None),
            ("200 OK", "Cache-Control: max-age=60\r\n", None),
            ("200 OK", "Cache-Control: s-maxage=60\r\n", None),
            ("200 OK", "Cache-Control: no-cache=\"set-cookie\"\r\n", None),
            ("200 OK", "Last-Modified: then\r\n", None),
            ("200 OK", "Expires: then\r\n", None),
            ("304 Not Modified", "Cache-Control: no-cache\r\n", None),
            ("503 Service Unavailable", "", None),
        ] {
            let before = "HTTP/1.1 103 Early Hints\r\nCache-Control: public\r\n\r\n";
            let whole = format!("{before}HTTP/1.1 {status}\r\n{fields}");
            let mut head = format!("{whole}\r\n").into_bytes();
            assert_eq!(cookie.add(&mut head, before.len()), added.is_some(), "{status} {fields}");
            let expected = match added {
                Some(more) => format!("{whole}{SET}{more}\r\n"),
                None => format!("{whole}\r\n"),
            };
            assert_eq!(String::from_utf8(head).unwrap(), expected);
        }
        let cookie = OwnCookie { path: "/a;b", secure: false, ..cookie };
        let mut head = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        assert!(cookie.add(&mut head, 0) && !cookie.add(&mut b"HTTP/1.1 200 OK\r\n".to_vec(), 0));
        assert!(
            String::from_utf8(head).unwrap().contains("Set-Cookie: uh=v; Path=/; HttpOnly; SameSite=Lax\r\n")
        );
    }

    fn without_own(field: &str) -> String {
        let mut out = Vec::new();
        write_without_own(field.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn cookies_with_our_prefix_are_left_out_and_all_others_stay() {
        for (field, rest) in [
            ("__uh-client=1", ""),
            ("__uh-client=1; __uh-other=2", ""),
            ("a=1; __uh-client=1", "Cookie: a=1\r\n"),
            ("__uh-client=1;a=1", "Cookie: a=1\r\n"),
            ("a=1; __uh-client=1; b=__uh-client=2;; c", "Cookie: a=1; b=__uh-client=2; c\r\n"),
            ("__uh=1; x__uh-client=1; __UH-client=1", "Cookie: __uh=1; x__uh-client=1; __UH-client=1\r\n"),
            ("a=\"x y\"; __uh-", "Cookie: a=\"x y\"\r\n"),
        ] {
            assert_eq!(without_own(field), rest, "{field}");
            assert_eq!(may_hold_own(field.as_bytes()), field.contains("__uh-"), "{field}");
        }
        let found = |field: &'static str| values_in(field.as_bytes(), "__uh-client").collect::<Vec<_>>();
        assert_eq!(found("a=1; __uh-client=x; __uh-client=y"), [b"x", b"y"]);
        assert_eq!(found("__uh-client; __uh-clients=1; x__uh-client=1; __UH-CLIENT=1"), [b""; 0]);
    }

    proptest! {
        #[test]
        fn no_cookie_with_our_prefix_is_left(field in "[_uhA-Za-z0-9;= \"-]{0,60}|(__uh-[a-z]?=?;? ?){0,6}") {
            let out = without_own(&field);
            let value = out.strip_prefix("Cookie: ").unwrap_or(&out);
            prop_assert!(value.split(';').all(|pair| !pair.trim().starts_with(OWN_PREFIX)), "{}", out);
        }

        #[test]
        fn a_field_without_one_is_the_same(pairs in prop::collection::vec("[a-z]{1,3}=[a-z_]{0,3}", 1..6)) {
            let field = pairs.join("; ");
            prop_assert_eq!(without_own(&field), format!("Cookie: {}\r\n", field));
        }

        #[test]
        fn nothing_else_of_a_head_changes(fields in "(([Cc]ookie|X-Y): [a-z=; ]{0,30}\r\n){0,5}") {
            let mut head = request(&fields);
            let lines = |head: &[u8]| -> Vec<Vec<u8>> {
                let of_cookies = |line: &&[u8]| !line.to_ascii_lowercase().starts_with(b"cookie:");
                head.split(|&b| b == b'\n').filter(of_cookies).map(<[u8]>::to_vec).collect()
            };
            let cookies = |head: &[u8]| -> Vec<Vec<u8>> {
                let others = |pair: &&[u8]| value_of(pair, b"uh").is_none();
                values(head, COOKIE).flat_map(pairs).filter(others).map(<[u8]>::to_vec).collect()
            };
            let before = (lines(&head), cookies(&head));
            hide(&mut head, b"uh");
            prop_assert_eq!((lines(&head), cookies(&head)), before);
            prop_assert!(values_of(&head, b"uh").next().is_none());
        }
    }
}
