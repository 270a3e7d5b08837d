//! The token of a preview: `SERVICE.BACKEND.UNTIL.MAC`. It says what its holder may look at, and until when, in seconds since
//! 1970. uh-proxy stores nothing about it.
//!
//! The MAC also covers the service's `preview.generation`. So a larger one ends all links of the service at once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uh_protocol::BackendName;

use super::own_cookies::{self, OwnCookies, PREVIEW};
use crate::config::Service;

/// The longest token: two names, the largest number, a MAC, and the dots between them.
const MOST_BYTES: usize = 2 * uh_protocol::name::MAX_NAME_BYTES + 20 + MAC_BYTES + 3;

/// The length of a MAC in hexadecimal.
const MAC_BYTES: usize = 16;

/// A new token, which ends at this second since 1970. `None`: there is no key.
pub(crate) fn issue(
    cookies: &OwnCookies,
    service: &Service,
    backend: &BackendName,
    until: u64,
) -> Option<String> {
    let terms = format!("{}.{backend}.{until}", service.name);
    let mac = mac(cookies, service, &terms)?;
    Some(format!("{terms}.{mac:016x}"))
}

/// The backend that a token's holder may look at. `None`: it is no valid token for this service, or has expired.
pub(super) fn backend_of<'t>(
    cookies: &OwnCookies,
    token: &'t [u8],
    service: &Service,
    now: SystemTime,
) -> Option<&'t str> {
    if token.len() > MOST_BYTES {
        return None;
    }
    let (terms, digits) = std::str::from_utf8(token).ok()?.rsplit_once('.')?;
    let mut parts = terms.split('.');
    let (of, backend, until) = (parts.next()?, parts.next()?, parts.next()?);
    let until: u64 = until.parse().ok()?;
    if parts.next().is_some() || of != service.name.as_str() || seconds(now) >= until {
        return None;
    }
    let digits: &[u8; MAC_BYTES] = digits.as_bytes().try_into().ok()?;
    (mac(cookies, service, terms)? == own_cookies::number(digits)?).then_some(backend)
}

fn mac(cookies: &OwnCookies, service: &Service, terms: &str) -> Option<u64> {
    let signed = format!("{terms}.{}", service.preview.generation);
    cookies.mac(PREVIEW, signed.as_bytes())
}

/// In whole seconds since 1970: a token ends at a second's beginning.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn service(more: &str) -> Service {
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n{more}\n\
             [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n"
        );
        crate::config::parse(&text).unwrap().services.remove(0)
    }

    fn cookies() -> OwnCookies {
        let dir = tempfile::tempdir().unwrap();
        let cookies = OwnCookies::new(&dir.path().join("state.json"));
        cookies.prepare();
        cookies
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_token_is_valid_for_its_service_until_it_expires_and_for_nothing_else() {
        let (ours, app, now) = (cookies(), service(""), SystemTime::now());
        let backend = "green".parse().unwrap();
        let token = issue(&ours, &app, &backend, seconds(now + HOUR)).unwrap();
        let read = |cookies: &OwnCookies, token: &str, service: &Service, now| {
            backend_of(cookies, token.as_bytes(), service, now).map(str::to_owned)
        };
        assert_eq!(read(&ours, &token, &app, now), Some("green".to_owned()));
        assert_eq!(read(&ours, &token, &app, now + HOUR), None, "expired");
        assert_eq!(read(&cookies(), &token, &app, now), None, "another key");
        let next = service("preview = { generation = 2 }");
        assert_eq!(read(&ours, &token, &next, now), None, "another generation");
        let other = Service { name: "shop".parse().unwrap(), ..app.clone() };
        assert_eq!(read(&ours, &token, &other, now), None, "another service");
        for at in 0..token.len() {
            let mut forged = token.clone().into_bytes();
            forged[at] = if forged[at] == b'1' { b'2' } else { b'1' };
            assert_eq!(backend_of(&ours, &forged, &app, now), None, "{at}");
        }
        for changed in
            [token.to_uppercase(), format!("{token}0"), format!(".{token}"), token.replace('.', "")]
        {
            assert_eq!(read(&ours, &changed, &app, now), None, "{changed}");
        }
    }

    #[test]
    fn without_a_key_there_is_no_token_and_none_is_valid() {
        let dir = tempfile::tempdir().unwrap();
        let none = OwnCookies::new(&dir.path().join("state.json"));
        let (app, now) = (service(""), SystemTime::now());
        assert_eq!(issue(&none, &app, &"green".parse().unwrap(), seconds(now + HOUR)), None);
        let token = issue(&cookies(), &app, &"green".parse().unwrap(), seconds(now + HOUR)).unwrap();
        assert_eq!(backend_of(&none, token.as_bytes(), &app, now), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(token in prop::collection::vec(any::<u8>(), 0..220), text in "app[.]green[.][0-9+]{0,22}[.][0-9a-f]{14,18}") {
            let (cookies, app) = (cookies(), service(""));
            prop_assert_eq!(backend_of(&cookies, &token, &app, UNIX_EPOCH), None);
            prop_assert_eq!(backend_of(&cookies, text.as_bytes(), &app, UNIX_EPOCH), None);
        }
    }
}
