//! The secret that makes what is in uh-proxy's cookies opaque and signs it. In a file next to the state file, so that
//! cookies are understood after a restart. Proxies that are to understand each other's cookies need the same key.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use uh_system::plain;

use crate::lock::with_suffix;

const SUFFIX: &str = ".cookie-key";

/// Only uh-proxy's user may read it.
const MODE: u32 = 0o600;

/// What is hashed with everything in a cookie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct CookieKey([u8; 32]);

impl std::fmt::Debug for CookieKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CookieKey(…)")
    }
}

impl CookieKey {
    /// Whether there is a key for this state file: then clients may have cookies of uh-proxy's.
    #[must_use]
    pub(crate) fn is_there(state_file: &Path) -> bool {
        with_suffix(state_file, SUFFIX).exists()
    }

    /// The key for this state file, made if there is none. One that can't be kept is still used: cookies are then not
    /// understood after a restart, and are replaced.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(crate) fn open(state_file: &Path) -> io::Result<Self> {
        let path = with_suffix(state_file, SUFFIX);
        if let Some(key) = Self::at(&path) {
            return Ok(key);
        }
        let key = Self::random()?;
        if let Err(error) = key.keep(&path) {
            let (path, error) = (path.display(), plain(&error));
            tracing::warn!(%path, error, "cannot keep the key of uh-proxy's cookies; after a restart, clients may get another endpoint or another side of a split, and links to previews end");
        }
        Ok(key)
    }

    /// Keeps it for this state file, unless it is already. For those who need it after a restart.
    ///
    /// # Errors
    /// It can't be written, or another key is there by now.
    pub(crate) fn demand_kept(&self, state_file: &Path) -> io::Result<()> {
        let path = with_suffix(state_file, SUFFIX);
        let kept = match Self::at(&path) {
            Some(key) if key == *self => Ok(()),
            Some(_) => Err("it has another key by now, which is used after a restart of uh-proxy".to_owned()),
            None => self.keep(&path).map_err(|error| plain(&error)),
        };
        kept.map_err(|why| io::Error::other(format!("{}: {why}", path.display())))
    }

    /// The key in this file, if there is a valid one.
    fn at(path: &Path) -> Option<Self> {
        Self::parse(fs::read_to_string(path).ok()?.trim_end())
    }

    /// A new one, that is kept nowhere.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(crate) fn random() -> io::Result<Self> {
        let mut key = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        Ok(Self(key))
    }

    /// Its bytes.
    #[must_use]
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let mut key = [0; 32];
        for (at, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
            *at = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        (text.len() == 64).then_some(Self(key))
    }

    fn keep(&self, path: &Path) -> io::Result<()> {
        let temporary = with_suffix(path, ".tmp");
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&temporary)?;
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(file, "{digits}")?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_kept_for_its_owner_alone_and_a_damaged_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state.json");
        assert!(!CookieKey::is_there(&state));
        let key = CookieKey::open(&state).unwrap();
        assert!(CookieKey::is_there(&state));
        assert_eq!(CookieKey::open(&state).unwrap(), key);
        assert_ne!(CookieKey::random().unwrap(), key);
        let path = dir.path().join("state.json.cookie-key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for damaged in ["", "zz", "00", &"é".repeat(32)] {
            fs::write(&path, damaged).unwrap();
            let next = CookieKey::open(&state).unwrap();
            assert!(next != key && CookieKey::open(&state).unwrap() == next, "{damaged:?}");
        }
    }

    #[test]
    fn one_that_cannot_be_kept_is_still_a_key_and_is_kept_as_soon_as_possible() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("none/state.json");
        let key = CookieKey::open(&state).unwrap();
        let refused = key.demand_kept(&state).unwrap_err().to_string();
        assert!(refused.contains("none/state.json.cookie-key: No such file or directory"), "{refused}");
        fs::create_dir(dir.path().join("none")).unwrap();
        key.demand_kept(&state).unwrap();
        key.demand_kept(&state).unwrap();
        assert_eq!(CookieKey::open(&state).unwrap(), key);
        let other = CookieKey::random().unwrap().demand_kept(&state).unwrap_err();
        assert!(other.to_string().contains("another key"), "{other}");
        assert_eq!(CookieKey::open(&state).unwrap(), key, "it isn't overwritten");
    }
}
