//! The state directory: the account, the certificates, and what is known about each set of hosts.
//!
//! ```text
//! account-HOST-HASH.json   one for each CA: its directory, the account's key and number
//! NAME-HASH.json           one for each set of hosts: the order in progress, the last failure, the next try
//! NAME-HASH.pem            its key and certificate, in one file, so that they can't be mixed up
//! ```
//!
//! Every file is replaced in one step and is for its owner alone: a crash leaves the old one or the new one.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uh_system::plain;

use super::hosts::HostSet;
use crate::fault;
use crate::lock::with_suffix;

/// The mode of the directory.
const DIRECTORY_MODE: u32 = 0o700;

/// The mode of each file: they hold private keys.
const FILE_MODE: u32 = 0o600;

/// A larger file can't be one of ours.
const MOST_BYTES: u64 = 1 << 20;

/// Why the state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It can't be created.
    #[error("server.acme.state_dir: cannot create {}; create it for uh-proxy's user with mode 700", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It isn't a directory, or isn't accessible.
    #[error("server.acme.state_dir: cannot use {}", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// uh-proxy can't write there: a certificate that can't be saved is lost at the next start.
    #[error("server.acme.state_dir: cannot write to {}; make uh-proxy's user its owner", path.display())]
    ReadOnly {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Other users can enter it.
    #[error("server.acme.state_dir: other users can access {} (mode {mode:o}), where private keys are kept; run chmod 700 on it", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

/// A CA's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AccountFile {
    /// The CA's directory.
    pub directory: String,
    /// The account's URL; `None`: not registered yet.
    pub id: Option<String>,
    /// The contact that the CA knows.
    #[serde(default)]
    pub contact: Vec<String>,
    /// The account's private key, as PKCS #8 in PEM.
    pub key: String,
}

/// An order in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PendingOrder {
    /// The order's URL.
    pub url: String,
    /// The directory of the CA that has it.
    pub directory: String,
    /// The private key of the certificate, as PKCS #8 in PEM.
    pub key: String,
}

/// What is known about a set of hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The hosts.
    pub hosts: Vec<String>,
    /// The directory of the CA that issued the current certificate.
    #[serde(default)]
    pub issuer: Option<String>,
    /// When the current certificate was issued, in seconds since 1970.
    #[serde(default)]
    pub issued_at: i64,
    /// The order in progress.
    #[serde(default)]
    pub order: Option<PendingOrder>,
    /// Attempts since the last success, the current one included.
    #[serde(default)]
    pub failures: u32,
    /// Whether an attempt has begun and not ended.
    #[serde(default)]
    pub trying: bool,
    /// The settings of the last attempt. With other ones, a failure says nothing.
    #[serde(default)]
    pub tried_with: String,
    /// When to try again after a failure, in seconds since 1970.
    #[serde(default)]
    pub next_try: Option<i64>,
    /// Why the last attempt failed.
    #[serde(default)]
    pub problem: Option<String>,
}

/// The state directory.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    /// Prepares the directory: creates it, keeps others out, and makes sure that files can be written.
    ///
    /// # Errors
    /// If it can't be used.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.to_owned();
        let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(dir);
        made.map_err(|source| match dir.exists() {
            true => StoreError::Unusable { path: path.clone(), source },
            false => StoreError::Create { path: path.clone(), source },
        })?;
        if let Err(StoreError::Open { mode, .. }) = check_mode(dir) {
            fs::set_permissions(dir, Permissions::from_mode(DIRECTORY_MODE))
                .map_err(|_| StoreError::Open { path: path.clone(), mode })?;
            tracing::warn!(path = %dir.display(), mode = format!("{mode:o}"), "other users could access the ACME state directory; changed its mode to 700");
        }
        check_mode(dir)?;
        let probe = dir.join(".writable");
        let written = replace(&probe, "probe", b"").and_then(|()| fs::remove_file(&probe));
        written.map_err(|source| StoreError::ReadOnly { path, source })?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Checks the directory without changing anything.
    ///
    /// # Errors
    /// If [`Store::open`] would fail for this user.
    pub(crate) fn check(dir: &Path) -> Result<(), StoreError> {
        if dir.exists() {
            check_mode(dir)?;
            let writable = access(dir, Access::WRITE_OK | Access::EXEC_OK);
            return writable
                .map_err(|error| StoreError::ReadOnly { path: dir.to_owned(), source: error.into() });
        }
        let parent = dir.ancestors().skip(1).find(|parent| parent.exists()).unwrap_or(Path::new("/"));
        let writable = access(parent, Access::WRITE_OK | Access::EXEC_OK);
        writable.map_err(|error| StoreError::Create { path: dir.to_owned(), source: error.into() })
    }

    /// The account at a CA, if there is one.
    pub(crate) fn account(&self, directory: &str) -> Option<AccountFile> {
        let account: AccountFile = self.read(&self.account_path(directory))?;
        (account.directory == directory).then_some(account)
    }

    /// Saves an account.
    ///
    /// # Errors
    /// If it can't be written; the old one is unchanged.
    pub(crate) fn save_account(&self, account: &AccountFile) -> io::Result<()> {
        self.write(&self.account_path(&account.directory), "account", account)
    }

    /// What is known about a set of hosts.
    #[must_use]
    pub(crate) fn record(&self, set: &HostSet) -> Record {
        let record: Option<Record> = self.read(&self.path(set, "json"));
        let hosts = set.hosts().to_vec();
        match record.filter(|record| set.is_same(&record.hosts)) {
            Some(record) => Record { hosts, ..record },
            None => Record { hosts, ..Record::default() },
        }
    }

    /// Saves what is known about a set of hosts.
    ///
    /// # Errors
    /// If it can't be written; the old one is unchanged.
    pub(crate) fn save_record(&self, set: &HostSet, record: &Record) -> io::Result<()> {
        self.write(&self.path(set, "json"), "record", record)
    }

    /// The file with a set's key and certificate.
    #[must_use]
    pub(crate) fn certificate_path(&self, set: &HostSet) -> PathBuf {
        self.path(set, "pem")
    }

    /// Saves a key and its certificate chain, both in PEM.
    ///
    /// # Errors
    /// If they can't be written; the old ones are unchanged.
    pub(crate) fn save_certificate(&self, set: &HostSet, pem: &str) -> io::Result<()> {
        let path = self.certificate_path(set);
        replace(&path, "certificate", pem.as_bytes()).map_err(|error| named(&path, &error))
    }

    /// All files with certificates, also of sets that are no longer configured.
    #[must_use]
    pub(crate) fn certificate_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "pem"))
            .collect();
        files.sort();
        files
    }

    fn path(&self, set: &HostSet, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", set.key()))
    }

    fn account_path(&self, directory: &str) -> PathBuf {
        let uri: Option<hyper::Uri> = directory.parse().ok();
        let host = uri.as_ref().and_then(hyper::Uri::host).unwrap_or("ca").trim_matches(['[', ']']);
        self.dir.join(format!("account-{host}-{:08x}.json", crc32fast::hash(directory.as_bytes())))
    }

    /// Reads a file. A damaged one is renamed, so that it can be examined, and counts as missing.
    fn read<T: DeserializeOwned>(&self, path: &Path) -> Option<T> {
        let text = match read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::error!(path = %path.display(), error = %plain(&error), "cannot read a file of the ACME state");
                return None;
            }
        };
        match serde_json::from_slice(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                let kept = with_suffix(path, ".damaged");
                let _ = fs::rename(path, &kept);
                tracing::error!(path = %path.display(), kept = %kept.display(), error = %plain(&error), "a file of the ACME state is damaged; continuing without it");
                None
            }
        }
    }

    fn write(&self, path: &Path, what: &str, value: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        replace(path, what, &text).map_err(|error| named(path, &error))
    }
}

/// Whether only its owner can use the directory. Group access is fine as long as nothing but looking is possible: every
/// file is for its owner alone.
fn check_mode(dir: &Path) -> Result<(), StoreError> {
    let path = || dir.to_owned();
    let metadata = fs::metadata(dir).map_err(|source| StoreError::Unusable { path: path(), source })?;
    if !metadata.is_dir() {
        let source = io::Error::from(io::ErrorKind::NotADirectory);
        return Err(StoreError::Unusable { path: path(), source });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o027 == 0 { Ok(()) } else { Err(StoreError::Open { path: path(), mode }) }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_file() || metadata.len() > MOST_BYTES {
        return Err(io::Error::other("it isn't a file that uh-proxy wrote"));
    }
    fs::read(path)
}

/// Replaces a file in one step. When this returns, it survives a crash.
fn replace(path: &Path, what: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = with_suffix(path, ".tmp");
    let create = || OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&temporary);
    let mut file = match create() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(&temporary)?;
            create()?
        }
        other => other?,
    };
    file.write_all(bytes)?;
    file.sync_all()?;
    fault::point(&format!("acme_{what}_written"));
    fs::rename(&temporary, path)?;
    fault::point(&format!("acme_{what}_renamed"));
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write {}: {}", path.display(), plain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> HostSet {
        HostSet::new(vec!["a.test".to_owned(), "b.test".to_owned()]).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn the_directory_and_its_files_are_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/acme");
        let store = Store::open(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        store.save_certificate(&set(), "KEY\nCHAIN\n").unwrap();
        let account = AccountFile {
            directory: "https://ca.test/dir".to_owned(),
            id: None,
            contact: vec![],
            key: "KEY".to_owned(),
        };
        store.save_account(&account).unwrap();
        store.save_record(&set(), &Record { failures: 3, ..store.record(&set()) }).unwrap();
        for entry in fs::read_dir(&path).unwrap() {
            assert_eq!(mode(&entry.as_ref().unwrap().path()), 0o600, "{entry:?}");
        }
        assert_eq!(store.account("https://ca.test/dir"), Some(account));
        assert_eq!(store.account("https://ca.test/other"), None);
        assert_eq!(store.record(&set()).failures, 3);
        assert_eq!(fs::read_to_string(store.certificate_path(&set())).unwrap(), "KEY\nCHAIN\n");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(Store::check(&path), Err(StoreError::Open { mode: 0o755, .. })));
        Store::open(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn a_damaged_file_is_kept_aside_and_counts_as_missing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save_record(&set(), &Record { failures: 3, ..store.record(&set()) }).unwrap();
        let path = store.path(&set(), "json");
        fs::write(&path, "{\"hosts\": [\"a.te").unwrap();
        assert_eq!(store.record(&set()).failures, 0);
        assert!(with_suffix(&path, ".damaged").exists() && !path.exists());
        // Another set's file under this name, by a hash that collides.
        fs::write(&path, "{\"hosts\": [\"other.test\"], \"failures\": 9}").unwrap();
        assert_eq!(store.record(&set()).failures, 0);
    }

    #[test]
    fn a_place_where_nothing_can_be_written_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(Store::open(&file), Err(StoreError::Unusable { .. })));
        assert!(matches!(Store::check(&file), Err(StoreError::Unusable { .. })));
        assert!(Store::open(&file.join("acme")).is_err() && Store::check(&file.join("acme")).is_err());
        Store::check(&dir.path().join("new/acme")).unwrap();
        assert!(!dir.path().join("new").exists(), "a check creates nothing");
    }
}
