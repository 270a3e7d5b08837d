//! One certificate with its key: read from two files, and proven to belong together.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::OFlags;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError as Invalid, Error, InconsistentKeys};

use super::der;
use crate::config::CertificateFiles;

/// A chain of certificates takes a few kilobytes. Whatever is larger is no PEM file.
const MOST_BYTES: u64 = 1 << 20;

/// A certificate that can be served.
#[derive(Debug)]
pub struct Certificate {
    /// What it is called in logs, status and metrics: its first name, or else its file.
    pub name: String,
    /// The DNS names that it is for, in lower case; `*.` stands for one label.
    pub names: Vec<String>,
    /// Where it comes from.
    pub files: CertificateFiles,
    /// Seconds since 1970 from which on it is good.
    pub not_before: i64,
    /// Seconds since 1970 after which it is not.
    pub not_after: i64,
    /// The chain and the key.
    pub key: Arc<CertifiedKey>,
    /// The files as they were when they were read.
    stamps: [Stamp; 2],
}

/// What changes when a file is replaced or written. Of a symbolic link, the file that it leads to: tools such as certbot
/// and Kubernetes change only where a link leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    /// Also changes when the permissions do.
    changed: (i64, i64),
}

impl From<&fs::Metadata> for Stamp {
    fn from(file: &fs::Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// Why a certificate can't be served.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file can't be read.
    #[error("cannot read {}; check that it exists and that uh-proxy's user may read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is a directory or a device, or far too large.
    #[error("{} isn't a PEM file: it {why}", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
    /// There is no certificate in it.
    #[error("{} holds no certificate{hint}", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// What may be the matter.
        hint: &'static str,
    },
    /// There is no key in it.
    #[error("{} holds no private key{hint}", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What may be the matter.
        hint: &'static str,
    },
    /// They are not a pair.
    #[error("{} isn't the key of {}; the certificate must come first in its file, before its intermediates", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// It can't be understood or used.
    #[error("{} can't be used: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Its time is over.
    #[error("{} expired on {at}; renew it", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// When.
        at: Timestamp,
    },
    /// Its time hasn't come.
    #[error("{} isn't valid before {at}; check the clock", path.display())]
    NotYet {
        /// The file.
        path: PathBuf,
        /// When.
        at: Timestamp,
    },
}

impl Certificate {
    /// Reads a certificate and its key, and checks that they belong together. Its dates are not judged: see
    /// [`Certificate::check_dates`].
    ///
    /// # Errors
    /// They can't be served.
    pub fn load(files: &CertificateFiles, provider: &CryptoProvider) -> Result<Self, CertificateError> {
        let ((cert_pem, cert_stamp), (key_pem, key_stamp)) = (read(&files.cert)?, read(&files.key)?);
        let chain = chain(&files.cert, &cert_pem)?;
        let key = key(&files.key, &key_pem)?;
        let leaf = chain.first().map(|leaf| leaf.to_vec()).unwrap_or_default();
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| refused(files, &error))?;
        let unusable =
            |why: &str| CertificateError::Unusable { path: files.cert.clone(), why: why.to_owned() };
        let validity = der::validity(&leaf).ok_or_else(|| unusable("its dates can't be read"))?;
        let names: Vec<String> = der::dns_names(&leaf)
            .into_iter()
            .map(|name| name.trim_end_matches('.').to_ascii_lowercase())
            .collect();
        let file = || files.cert.display().to_string();
        Ok(Self {
            name: names.first().cloned().unwrap_or_else(file),
            names,
            files: files.clone(),
            not_before: validity.not_before,
            not_after: validity.not_after,
            key: Arc::new(key),
            stamps: [cert_stamp, key_stamp],
        })
    }

    /// Whether one of its files isn't what was read.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        let paths = [&self.files.cert, &self.files.key];
        paths.iter().zip(self.stamps).any(|(path, stamp)| {
            // What can't be looked at can't be read either; reading says why.
            fs::metadata(path).map_or(true, |file| Stamp::from(&file) != stamp)
        })
    }

    /// Whether it is the same certificate as another one, with the same chain.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
    }

    /// Whether the certificate is good at a time.
    ///
    /// # Errors
    /// It has expired, or isn't valid yet.
    pub fn check_dates(&self, now: Timestamp) -> Result<(), CertificateError> {
        let at = |second| Timestamp::from_second(second).unwrap_or_default();
        let path = || self.files.cert.clone();
        if now.as_second() > self.not_after {
            return Err(CertificateError::Expired { path: path(), at: at(self.not_after) });
        }
        if now.as_second() < self.not_before {
            return Err(CertificateError::NotYet { path: path(), at: at(self.not_before) });
        }
        Ok(())
    }

    /// Whether it is for this host, in lower case.
    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(parent) => {
                host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent)
            }
            None => name == host,
        })
    }
}

fn read(path: &Path) -> Result<(Vec<u8>, Stamp), CertificateError> {
    let unreadable = |source| CertificateError::Unreadable { path: path.to_owned(), source };
    let no_file = |why| CertificateError::NoFile { path: path.to_owned(), why };
    // Or a pipe would be waited for.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let metadata: fs::Metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(no_file("is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(no_file("is larger than 1 MiB"));
    }
    Ok((bytes, Stamp::from(&metadata)))
}

fn chain(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|error| {
        CertificateError::Unusable { path: path.to_owned(), why: format!("its PEM is damaged ({error})") }
    })?;
    if chain.is_empty() {
        let hint = if contains(pem, "PRIVATE KEY") { ": it is the key's; swap cert and key" } else { "" };
        return Err(CertificateError::NoCertificate { path: path.to_owned(), hint });
    }
    Ok(chain)
}

fn key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        let hint = if contains(pem, "ENCRYPTED") {
            " without a passphrase; write it unencrypted with: openssl pkey -in OLD -out NEW"
        } else if contains(pem, "CERTIFICATE") {
            ": it is the certificate's; swap cert and key"
        } else {
            " in PEM format"
        };
        CertificateError::NoKey { path: path.to_owned(), hint }
    })
}

fn contains(pem: &[u8], text: &str) -> bool {
    memchr::memmem::find(pem, text.as_bytes()).is_some()
}

fn refused(files: &CertificateFiles, error: &Error) -> CertificateError {
    let cert = |why: String| CertificateError::Unusable { path: files.cert.clone(), why };
    match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            CertificateError::Mismatch { cert: files.cert.clone(), key: files.key.clone() }
        }
        Error::InvalidCertificate(Invalid::BadEncoding) => {
            cert("it isn't a valid X.509 certificate".to_owned())
        }
        Error::InvalidCertificate(other) => cert(other.to_string()),
        other => CertificateError::Unusable { path: files.key.clone(), why: other.to_string() },
    }
}
