//! Requests that bypass maintenance: health checks, and operators' requests.

use std::net::IpAddr;

use crate::config::{MaintenanceBypass, PathSettings, SecretField, Service};
use uh_http1::field::values;
use uh_http1::request::RequestHead;

/// Why a request bypasses maintenance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// It is for the health path. If no backend can answer, uh-proxy answers with 200, so that a load balancer in front
    /// keeps sending clients, who then see the maintenance page.
    Health,
    /// It has the secret or comes from a listed address.
    Operator,
}

/// Whether a request bypasses maintenance. `path` may have a query; `client` is an IP address.
#[must_use]
pub(crate) fn pass(service: &Service, head: &[u8], is_read: bool, path: &[u8], client: &str) -> Option<Pass> {
    if is_read && is_health_path(service, path) {
        Some(Pass::Health)
    } else if is_operator(&service.maintenance, head, client) {
        Some(Pass::Operator)
    } else {
        None
    }
}

/// Whether a request is a health check. `settings`: those of its path.
#[must_use]
pub(super) fn is_health_check(
    service: &Service,
    settings: &PathSettings,
    request: &RequestHead,
    head: &[u8],
) -> bool {
    request.method.is_read() && leads_to_health(service, settings, request.path.of_head(head))
}

/// Whether a client's path is that of the health check: the app gets the health path for it. The query doesn't matter.
pub(super) fn is_health_path(service: &Service, path: &[u8]) -> bool {
    leads_to_health(service, service.rules.at(service.rules.find(path)), path)
}

/// The same if the settings of the path are known.
fn leads_to_health(service: &Service, settings: &PathSettings, path: &[u8]) -> bool {
    if let Some(replacement) = &settings.replacement {
        let without_query = |path| split_at_byte(path, b'?');
        return replacement.leads_to(without_query(path), without_query(service.health.path.as_bytes()));
    }
    let inner = service.stripped_prefix().map_or(Some(path), |prefix| path.strip_prefix(prefix.as_bytes()));
    inner.is_some_and(|path| is_same_path(path, service.health.path.as_bytes()))
}

/// Whether two paths are the same up to their queries. Nothing is searched for: most paths differ within a few bytes.
fn is_same_path(a: &[u8], b: &[u8]) -> bool {
    let common = a.iter().zip(b).take_while(|(a, b)| a == b && **a != b'?').count();
    let ends = |path: &[u8]| path.get(common).is_none_or(|&byte| byte == b'?');
    ends(a) && ends(b)
}

fn split_at_byte(text: &[u8], byte: u8) -> &[u8] {
    memchr::memchr(byte, text).map_or(text, |at| &text[..at])
}

fn is_operator(bypass: &MaintenanceBypass, head: &[u8], client: &str) -> bool {
    let has_secret = |secret: &SecretField| {
        values(head, secret.name.as_bytes()).any(|value| same(value, secret.value.as_bytes()))
    };
    let is_listed = |address: IpAddr| bypass.addresses.iter().any(|network| network.contains(address));
    bypass.header.as_ref().is_some_and(has_secret) || client.parse().is_ok_and(is_listed)
}

/// Compares in constant time.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(extra: &str) -> Service {
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n{extra}\n\
             [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n[services.app.maintenance]\n\
             bypass_header = \"X-Look: let me in please\"\nbypass_addresses = [\"10.0.0.0/8\", \"::1\"]\n"
        );
        crate::config::parse(&text).unwrap().services.remove(0)
    }

    #[test]
    fn the_health_path_gets_through_as_the_client_writes_it() {
        let plain = service("");
        let stripped = service("path_prefix = \"/shop\"\nstrip_prefix = true");
        for (service, path, is_read, expected) in [
            (&plain, "/api/health", true, Some(Pass::Health)),
            (&plain, "/api/health?deep=1", true, Some(Pass::Health)),
            (&plain, "/api/health", false, None),
            (&plain, "/api/healthy", true, None),
            (&plain, "/", true, None),
            (&stripped, "/shop/api/health", true, Some(Pass::Health)),
            (&stripped, "/api/health", true, None),
        ] {
            assert_eq!(pass(service, b"", is_read, path.as_bytes(), "192.0.2.1"), expected, "{path}");
        }
    }

    #[test]
    fn paths_are_compared_up_to_their_queries() {
        for (a, b, same) in [
            ("/a", "/a", true),
            ("/a?x", "/a", true),
            ("/a?x", "/a?y", true),
            ("/a?", "/a", true),
            ("", "?x", true),
            ("/a", "/ab", false),
            ("/ab?x", "/a?x", false),
            ("/a", "/b", false),
            ("/", "", false),
        ] {
            assert_eq!(is_same_path(a.as_bytes(), b.as_bytes()), same, "{a} {b}");
            assert_eq!(is_same_path(b.as_bytes(), a.as_bytes()), same, "{b} {a}");
        }
    }

    #[test]
    fn operators_get_through_by_secret_or_address() {
        let service = service("");
        let with = |field: &str, client| {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
            pass(&service, head.as_bytes(), true, b"/", client)
        };
        assert_eq!(with("x-LOOK: let me in please", "192.0.2.1"), Some(Pass::Operator));
        assert_eq!(with("A: b", "10.1.2.3"), Some(Pass::Operator));
        assert_eq!(with("A: b", "::1"), Some(Pass::Operator));
        for field in
            ["x-look: let me in pleas", "x-look: let me in pleasf", "x-look:", "y-look: let me in please"]
        {
            assert_eq!(with(field, "192.0.2.1"), None, "{field}");
        }
        assert_eq!(with("A: b", "unknown"), None);
    }
}
