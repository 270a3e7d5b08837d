//! `sticky`, of a service: how the requests of a client reach the same endpoint of a backend.

use uh_http1::field::is_token_byte;
use uh_settings::{Given, Section};

/// The cookie's name, if none is given.
const COOKIE: &str = "uh-endpoint";

/// What a client is recognised by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sticky {
    /// A cookie of uh-proxy's with this name.
    Cookie(String),
    /// Its address.
    Address,
}

impl Sticky {
    /// By a cookie with this name; `None`: no cookie can have it.
    #[must_use]
    pub(crate) fn by_cookie(name: &str) -> Option<Self> {
        why_not(name).is_none().then(|| Self::Cookie(name.to_owned()))
    }
}

/// Why a cookie can't have this name.
fn why_not(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    if name.is_empty() || !name.bytes().all(is_token_byte) {
        Some(format!("{name:?} isn't a cookie's name: use letters, digits and hyphens"))
    } else if lower.starts_with("__host-") || lower.starts_with("__secure-") {
        Some("browsers accept this prefix only over HTTPS: use another name".to_owned())
    } else {
        None
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Cookie,
    Address,
}

/// Reads `sticky`.
pub(super) fn sticky(section: &mut Section) -> Option<Sticky> {
    match section.given("sticky") {
        None | Some(Given::Boolean(false)) => None,
        Some(Given::Boolean(true)) => {
            section.mistake("sticky", "say by what: { by = \"cookie\" } or { by = \"address\" }");
            None
        }
        Some(Given::Table(table)) => Some(of_table(table)),
    }
}

fn of_table(mut section: Section) -> Sticky {
    if !section.has("by") {
        section.mistake("by", "missing: \"cookie\" or \"address\"");
    }
    let has_cookie = section.has("cookie");
    let by = section.choice("by", By::Cookie, &[("cookie", By::Cookie), ("address", By::Address)]);
    let cookie = section.text("cookie").unwrap_or_else(|| COOKIE.to_owned());
    if by == By::Address && has_cookie {
        section.mistake("cookie", "there is no cookie if the address decides: remove it");
    }
    if let Some(reason) = why_not(&cookie) {
        section.mistake("cookie", reason);
    }
    match by {
        By::Cookie => Sticky::Cookie(cookie),
        By::Address => Sticky::Address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigError, parse};

    fn configured(service: &str) -> Result<Config, ConfigError> {
        parse(&format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n{service}\n\
             [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n"
        ))
    }

    #[test]
    fn a_service_is_sticky_by_cookie_or_by_address_or_not_at_all() {
        let of = |service: &str| configured(service).unwrap().services.remove(0).sticky;
        assert_eq!(of(""), None);
        assert_eq!(of("sticky = false"), None);
        assert_eq!(of("sticky = { by = \"address\" }"), Some(Sticky::Address));
        assert_eq!(of("sticky = { by = \"cookie\" }"), Some(Sticky::Cookie("uh-endpoint".to_owned())));
        let named = of("sticky = { by = \"cookie\", cookie = \"route\" }");
        assert_eq!(named, Some(Sticky::Cookie("route".to_owned())));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (sticky, key, reason) in [
            ("true", "sticky", "by = \"cookie\""),
            ("\"cookie\"", "sticky", "expected a table"),
            ("{ cookie = \"a\" }", "sticky.by", "missing"),
            ("{ by = \"ip\" }", "sticky.by", "cookie"),
            ("{ by = \"address\", cookie = \"a\" }", "sticky.cookie", "remove it"),
            ("{ by = \"cookie\", cookie = \"a b\" }", "sticky.cookie", "name"),
            ("{ by = \"cookie\", cookie = \"__Host-a\" }", "sticky.cookie", "another name"),
            ("{ by = \"cookie\", path = \"/\" }", "sticky.path", "unknown key"),
        ] {
            let Err(ConfigError::Mistakes(found)) = configured(&format!("sticky = {sticky}")) else {
                panic!("{sticky} passed")
            };
            let key = format!("services.app.{key}");
            let named = found.0.iter().any(|mistake| mistake.key == key && mistake.reason.contains(reason));
            assert!(named, "{sticky}: {found:?}");
        }
    }
}
