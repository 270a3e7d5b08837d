//! Previews: whoever has a token looks at a standby through the service's usual address, before anybody else does.
//!
//! A link has the token in its query: it sets a cookie and leads to the clean address. Tests and API clients send it in a
//! field. A host for previews alone has no answer for anybody without one. A token that isn't valid counts as none; the app
//! gets no valid one, in whatever form it came.
//!
//! As long as an installation has no key, and so has never issued a token, nothing looks for one.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::SystemTime;

use uh_http1::cookie::{self, OwnCookie};
use uh_http1::edits::{Edit, FieldEdits, Names};
use uh_http1::forwarded::Scheme;
use uh_http1::request::RequestHead;
use uh_protocol::request::PREVIEW_PARAMETER;
use uh_switching::route;

use super::client::Client;
use super::own_cookies::{MOST_TRIED, PREVIEW};
use super::preview_token;
use crate::config::Service;

/// What a request has to do with a preview.
pub(super) enum Preview<'a> {
    /// Nothing.
    None,
    /// It is for a host that is for previews alone, and has no valid token.
    Refused,
    /// It follows a link.
    Link(PreviewLink),
    /// It is to reach this backend.
    Of {
        backend: &'a str,
        /// Its host is for previews alone.
        on_host: bool,
    },
}

/// The answer to a request that follows a link.
pub(super) struct PreviewLink {
    /// The same address without the token.
    pub clean: String,
    /// The `Set-Cookie` field.
    pub cookie: String,
}

/// What a request for this service has to do with a preview.
pub(super) fn of<'a, L>(client: &'a Client<L>, request: &RequestHead, service: &Service) -> Preview<'a> {
    let (head, cookies) = (client.request_head(), &*client.worker.cookies);
    let on_host = !service.preview.hosts.is_empty() && is_on_host(request.host.of_head(head), service);
    if cookies.in_use() {
        let valid = |token| preview_token::backend_of(cookies, token, service, SystemTime::now());
        let path = request.path.of_head(head);
        if let Some(token) = tokens_in(path).take(MOST_TRIED).find(|token| valid(token).is_some()) {
            return Preview::Link(link(path, token, request.scheme, service));
        }
        if let Some(backend) = carried(request, head, valid) {
            return Preview::Of { backend, on_host };
        }
    }
    if on_host { Preview::Refused } else { Preview::None }
}

/// What the token says that a request carries in a field or in a cookie.
fn carried<'a>(
    request: &RequestHead,
    head: &'a [u8],
    valid: impl Fn(&'a [u8]) -> Option<&'a str>,
) -> Option<&'a str> {
    let field = request.preview.of_head(head);
    let by_field = if field.is_empty() { None } else { valid(field) };
    // Only a field that may hold a cookie of ours is here.
    let cookie = request.cookie.of_head(head);
    by_field.or_else(|| cookie::values_in(cookie, PREVIEW).take(MOST_TRIED).find_map(valid))
}

fn is_on_host(host: &[u8], service: &Service) -> bool {
    service.preview.is_for(&route::canonical(host))
}

/// The tokens in the query of a path, valid or not.
fn tokens_in(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let query = memchr::memchr(b'?', path).map_or(path.len(), |at| at + 1);
    path[query..].split(|&b| b == b'&').filter_map(value)
}

/// A query, which begins with its `?` if there is one, without tokens: another site gets none.
pub(super) fn without_tokens(query: &[u8]) -> Cow<'_, [u8]> {
    if tokens_in(query).next().is_none() {
        return Cow::Borrowed(query);
    }
    let rest: Vec<&[u8]> = query[1..].split(|&b| b == b'&').filter(|part| value(part).is_none()).collect();
    let separator: &[u8] = if rest.is_empty() { b"" } else { b"?" };
    Cow::Owned([separator, &rest.join(&b"&"[..])].concat())
}

/// The value of this parameter, if it is the one of tokens.
fn value(parameter: &[u8]) -> Option<&[u8]> {
    parameter.strip_prefix(PREVIEW_PARAMETER.as_bytes())?.strip_prefix(b"=")
}

fn link(path: &[u8], token: &[u8], scheme: Scheme, service: &Service) -> PreviewLink {
    let value = std::str::from_utf8(token).unwrap_or_default();
    let path_of_cookie = match service.path_prefix.trim_end_matches('/') {
        "" => "/",
        prefix => prefix,
    };
    let secure = scheme == Scheme::Https;
    let cookie = OwnCookie { name: PREVIEW, value, path: path_of_cookie, secure }.text();
    PreviewLink { clean: clean(path), cookie }
}

/// The path with what is left of its query: an address on the same host, whatever the path begins with.
fn clean(path: &[u8]) -> String {
    let at = memchr::memchr(b'?', path).unwrap_or(path.len());
    let (path, query) = path.split_at(at);
    let rest = without_tokens(query);
    // Browsers take both for the beginning of another host.
    let before = match path {
        [b'/', b'/' | b'\\', ..] => "/.",
        [b'/', ..] => "",
        _ => "/",
    };
    let text = |part| String::from_utf8_lossy(part).into_owned();
    format!("{before}{}{}", text(path), text(&rest))
}

/// A request's target, or its `Referer`, as it is logged: whoever reads the log gets no token.
pub(super) fn logged(target: &[u8]) -> Cow<'_, [u8]> {
    let Some(query) = memchr::memchr(b'?', target).filter(|_| tokens_in(target).next().is_some()) else {
        return Cow::Borrowed(target);
    };
    let hidden = |parameter| match value(parameter) {
        Some(_) => [PREVIEW_PARAMETER.as_bytes(), b"=-"].concat(),
        None => <[u8]>::to_vec(parameter),
    };
    let parameters: Vec<Vec<u8>> = target[query + 1..].split(|&b| b == b'&').map(hidden).collect();
    Cow::Owned([&target[..=query], &parameters.join(&b"&"[..])].concat())
}

/// What every answer of a preview has: no cache may store it, and no search engine may list it. Also removed are the fields
/// by which apps allow CDNs to store what others must not.
pub(super) static PRIVATE: LazyLock<FieldEdits> = LazyLock::new(|| {
    let set = |text: &str| Edit::Set(text.to_owned());
    let (private, unlisted) = (set("private, no-store"), set("noindex"));
    let for_caches = [
        "Expires",
        "CDN-Cache-Control",
        "Cloudflare-CDN-Cache-Control",
        "Netlify-CDN-Cache-Control",
        "Vercel-CDN-Cache-Control",
        "Surrogate-Control",
        "Edge-Control",
        "X-Accel-Expires",
    ];
    let removed = for_caches.iter().map(|name| (*name, &Edit::Remove));
    let set = [("Cache-Control", &private), ("X-Robots-Tag", &unlisted)];
    FieldEdits::new(set.into_iter().chain(removed), Names::Exact)
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_address_has_all_but_the_token_and_stays_on_its_host() {
        for (path, expected) in [
            ("/?__uh-preview=a.b", "/"),
            ("/a?__uh-preview=a.b&x=1", "/a?x=1"),
            ("/a?x=1&__uh-preview=a.b&y=?z", "/a?x=1&y=?z"),
            ("/a?__uh-preview=a&__uh-preview=b&&q", "/a?&q"),
            ("?__uh-preview=a", "/"),
            ("//evil.test/?__uh-preview=a", "/.//evil.test/"),
            ("/\\evil.test?__uh-preview=a", "/./\\evil.test"),
            ("*", "/*"),
        ] {
            assert_eq!(clean(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn another_site_gets_no_token() {
        for (query, expected) in [
            ("", ""),
            ("?", "?"),
            ("?a=1", "?a=1"),
            ("?__uh-preview=a", ""),
            ("?__uh-preview=a&b", "?b"),
            ("?a&__uh-preview=b&__uh-preview=c", "?a"),
        ] {
            assert_eq!(without_tokens(query.as_bytes()), expected.as_bytes(), "{query}");
        }
    }

    #[test]
    fn a_token_is_a_parameter_of_its_own_and_is_not_logged() {
        for (path, token, shown) in [
            ("/a", None, "/a"),
            ("/a?x=__uh-preview=t", None, "/a?x=__uh-preview=t"),
            ("/a?__uh-previews=t", None, "/a?__uh-previews=t"),
            ("/__uh-preview=t", None, "/__uh-preview=t"),
            ("/a?__uh-preview=t", Some("t"), "/a?__uh-preview=-"),
            ("/a?x&__uh-preview=t&y=1", Some("t"), "/a?x&__uh-preview=-&y=1"),
        ] {
            assert_eq!(tokens_in(path.as_bytes()).next(), token.map(str::as_bytes), "{path}");
            assert_eq!(logged(path.as_bytes()), shown.as_bytes(), "{path}");
        }
    }

    #[test]
    fn an_answer_is_for_its_holder_alone() {
        let mut head =
            b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=9\r\ncdn-cache-control: max-age=9\r\n\
            ETag: a\r\nExpires: later\r\nX-Robots-Tag: all\r\n\r\n"
                .to_vec();
        PRIVATE.apply(&mut head, 0);
        let head = String::from_utf8(head).unwrap();
        assert!(
            head.contains("Cache-Control: private, no-store\r\n")
                && head.contains("X-Robots-Tag: noindex\r\n"),
            "{head}"
        );
        assert!(head.contains("ETag: a\r\n"), "{head}");
        for gone in ["max-age", "Expires", "all\r\n"] {
            assert!(!head.contains(gone), "{head}");
        }
    }
}
