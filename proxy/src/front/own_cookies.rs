//! uh-proxy's own cookies: values that only uh-proxy can make. What hides them from apps, and where they may be set, is in
//! [`uh_http1::cookie`].
//!
//! A value is 128 bits and a MAC of 64, which also covers the cookie's name: a client can't choose its value, or use one
//! cookie's for another. A cookie that isn't valid counts as none. The tokens of previews, which are texts, have the same
//! MAC.
//!
//! As long as an installation has set none, nothing looks for them.

use std::hash::Hasher as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use parking_lot::Mutex;
use siphasher::sip::SipHasher24;
use uh_system::plain;

use crate::random;
use crate::state::cookie_key::CookieKey;
use uh_http1::cookie::{self, OwnCookie};

/// The cookie by which a client is recognised: an id that says nothing about it.
pub(super) const CLIENT: &str = "__uh-client";

/// The cookie of a browser that looks at a standby. No name of ours ends like another one.
pub(super) const PREVIEW: &str = "__uh-preview";

/// Reads and makes uh-proxy's cookies.
#[derive(Debug)]
pub(crate) struct OwnCookies {
    key: OnceLock<Signer>,
    /// Held while the key is made, so that there is only one.
    preparing: Mutex<()>,
    state_file: PathBuf,
}

impl OwnCookies {
    /// With the key that belongs to this state file, if there is one.
    pub(crate) fn new(state_file: &Path) -> Self {
        let cookies =
            Self { key: OnceLock::new(), preparing: Mutex::default(), state_file: state_file.to_owned() };
        if CookieKey::is_there(state_file) {
            cookies.prepare();
        }
        cookies
    }

    /// Makes the key before the first cookie is set. Writes to the disk.
    pub(crate) fn prepare(&self) {
        let _preparing = self.preparing.lock();
        if self.in_use() {
            return;
        }
        match CookieKey::open(&self.state_file) {
            Ok(key) => drop(self.key.set(Signer(key))),
            Err(error) => {
                tracing::warn!(error = %plain(&error), "no key for cookies: addresses decide where a split sends clients, and there are no previews");
            }
        }
    }

    /// Requires that the key, if there is one, is still there after a restart. Reads the disk, and may write to it.
    ///
    /// # Errors
    /// It isn't, and can't be kept.
    pub(crate) fn demand_kept(&self) -> io::Result<()> {
        let _preparing = self.preparing.lock();
        self.key.get().map_or(Ok(()), |Signer(key)| key.demand_kept(&self.state_file))
    }

    /// Whether requests may have cookies of uh-proxy's.
    pub(crate) fn in_use(&self) -> bool {
        self.key.get().is_some()
    }

    /// The value of the first valid cookie with this name, in the value of a `Cookie` field.
    pub(super) fn read(&self, field: &[u8], name: &str) -> Option<u128> {
        let signer = self.key.get()?;
        cookie::values_in(field, name).take(MOST_TRIED).find_map(|text| signer.open(name, text))
    }

    /// The MAC of a text for this use; `None`: there is no key.
    pub(super) fn mac(&self, name: &str, text: &[u8]) -> Option<u64> {
        Some(self.key.get()?.mac(name, text))
    }

    /// Sets a cookie in the complete head that begins at `start`, if that is safe.
    pub(super) fn set(&self, name: &str, value: u128, secure: bool, (head, start): (&mut Vec<u8>, usize)) {
        let Some(signer) = self.key.get() else { return };
        OwnCookie { name, value: &signer.seal(name, value), path: "/", secure }.add(head, start);
    }
}

/// How many cookies of the same name are tried: the browser's, and a few that others have set for its domain.
pub(super) const MOST_TRIED: usize = 8;

/// Makes and checks MACs.
struct Signer(CookieKey);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer(…)")
    }
}

impl Signer {
    fn seal(&self, name: &str, value: u128) -> String {
        format!("{value:032x}{:016x}", self.mac(name, &value.to_le_bytes()))
    }

    fn open(&self, name: &str, text: &[u8]) -> Option<u128> {
        let ([high, low, mac], []) = text.as_chunks() else { return None };
        let (high, low, mac) = (number(high)?, number(low)?, number(mac)?);
        let value = u128::from(high) << 64 | u128::from(low);
        (self.mac(name, &value.to_le_bytes()) == mac).then_some(value)
    }

    fn mac(&self, name: &str, value: &[u8]) -> u64 {
        // SipHash takes half of the key's bits.
        let key: [u8; 16] = std::array::from_fn(|at| self.0.bytes()[at]);
        let mut mac = SipHasher24::new_with_key(&key);
        mac.write(value);
        mac.write(name.as_bytes());
        mac.finish()
    }
}

/// Of sixteen digits as `seal` writes them: in lowercase, so that a value has one text.
pub(super) fn number(digits: &[u8; 16]) -> Option<u64> {
    const NONE: u8 = 16;
    const DIGITS: [u8; 256] = {
        let mut table = [NONE; 256];
        let mut digit = 0;
        while digit < NONE {
            table[b"0123456789abcdef"[digit as usize] as usize] = digit;
            digit += 1;
        }
        table
    };
    let (mut number, mut seen) = (0, 0);
    for &digit in digits {
        let digit = DIGITS[usize::from(digit)];
        seen |= digit;
        number = number << 4 | u64::from(digit & 15);
    }
    (seen < NONE).then_some(number)
}

/// A random value for a cookie that fits; `None`: none was found soon.
pub(super) fn draw(fits: impl Fn(u128) -> bool) -> Option<u128> {
    // From a random place on: as good as new ones, and much faster.
    let first = random::bits()?;
    (0..MOST_DRAWN).map(|step| first.wrapping_add(step)).find(|value| fits(*value))
}

/// How many values are tried: enough for one in a hundred, and for one in a thousand more often than not. Who gets none
/// is asked again with the next page.
const MOST_DRAWN: u128 = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn signer() -> Signer {
        Signer(CookieKey::random().unwrap())
    }

    #[test]
    fn a_value_is_only_valid_with_its_mac_its_name_and_its_key() {
        let ours = signer();
        let text = ours.seal(CLIENT, 7);
        assert_eq!(text.len(), 48);
        assert_eq!(ours.open(CLIENT, text.as_bytes()), Some(7));
        assert_eq!(signer().open(CLIENT, text.as_bytes()), None);
        assert_eq!(ours.open("__uh-other", text.as_bytes()), None);
        let upper = ours.seal(CLIENT, u128::MAX).to_uppercase();
        assert_eq!(ours.open(CLIENT, upper.as_bytes()), None);
        for at in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[at] = if forged[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(ours.open(CLIENT, &forged), None, "{at}");
        }
    }

    #[test]
    fn values_stay_valid_from_version_to_version() {
        let mut one_by_one = SipHasher24::new_with_key(&[7; 16]);
        one_by_one.write(&5_u128.to_le_bytes());
        one_by_one.write(CLIENT.as_bytes());
        let at_once: Vec<u8> = 5_u128.to_le_bytes().into_iter().chain(CLIENT.bytes()).collect();
        assert_eq!(one_by_one.finish(), SipHasher24::new_with_key(&[7; 16]).hash(&at_once));
        assert!(!PREVIEW.ends_with(CLIENT) && !CLIENT.ends_with(PREVIEW));
    }

    #[test]
    fn a_draw_finds_what_is_not_too_rare() {
        assert!(draw(|value| value % 100 == 0).is_some_and(|value| value % 100 == 0));
        assert_eq!(draw(|_| false), None);
    }

    proptest! {
        #[test]
        fn what_is_sealed_can_be_opened(value in any::<u128>()) {
            let signer = signer();
            let text = signer.seal(CLIENT, value);
            prop_assert_eq!(signer.open(CLIENT, text.as_bytes()), Some(value));
        }

        #[test]
        fn no_bytes_panic(text in prop::collection::vec(any::<u8>(), 40..56)) {
            prop_assert_eq!(signer().open(CLIENT, &text), None);
        }
    }
}
