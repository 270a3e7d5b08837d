//! A certificate and its key: reads them from their files, and checks that they match.

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

/// A certificate chain takes a few kilobytes. Anything larger isn't a PEM file.
const MOST_BYTES: u64 = 1 << 20;

/// A certificate that can be served.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// Identifies it in logs, status and metrics: its first DNS name, or its file if it has none.
    pub name: String,
    /// The DNS names it covers, in lower case; `*.` covers one label.
    pub names: Vec<String>,
    /// Where it comes from.
    pub source: Source,
    /// Start of its validity, in seconds since 1970.
    pub not_before: i64,
    /// End of its validity, in seconds since 1970.
    pub not_after: i64,
    /// The chain and the key.
    pub key: Arc<CertifiedKey>,
}

/// Where a certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The configuration names its files.
    Files(CertificateFiles, Stamps),
    /// A certificate authority issued it by ACME. It is in this file, with its key.
    Acme(PathBuf),
}

/// Identifies the contents of a certificate's files as they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamps([Stamp; 2]);

/// Detects whether a file was replaced or written. Symbolic links are followed, because tools such as certbot and
/// Kubernetes change only the target of a link.
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
    #[error("cannot read {}; check that it exists and that uh-proxy's user can read it and pass through its directories", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is a directory or a device, or far too large.
    #[error("{} isn't a PEM file: {why}", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
        /// Why it isn't one.
        why: &'static str,
    },
    /// The file contains no certificate.
    #[error("{} contains no certificate{hint}", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// The likely cause, or nothing.
        hint: &'static str,
    },
    /// The file contains no private key.
    #[error("{} contains no private key{hint}", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// The likely cause, or nothing.
        hint: &'static str,
    },
    /// The certificate and the key don't match.
    #[error("{} isn't the key of {}; use both files from the same renewal, and put the certificate before its intermediates", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The file can't be parsed, or TLS can't use it.
    #[error("{} can't be used: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The certificate has expired.
    #[error("{} expired on {at}; renew it", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// When.
        at: Timestamp,
    },
    /// The certificate isn't valid yet.
    #[error("{} isn't valid before {at}; check this machine's clock", path.display())]
    NotYet {
        /// The file.
        path: PathBuf,
        /// When.
        at: Timestamp,
    },
}

impl Certificate {
    /// Reads a certificate and its key, and checks that they match. Doesn't check the dates: see
    /// [`Certificate::check_dates`].
    ///
    /// # Errors
    /// If they can't be served.
    pub(crate) fn load(
        files: &CertificateFiles,
        provider: &CryptoProvider,
    ) -> Result<Self, CertificateError> {
        let ((cert_pem, cert_stamp), (key_pem, key_stamp)) = (read(&files.cert)?, read(&files.key)?);
        let source = Source::Files(files.clone(), Stamps([cert_stamp, key_stamp]));
        Self::parse(files, &cert_pem, &key_pem, source, provider)
    }

    /// Reads a key and its certificate from one file, and checks that they match. `name` identifies it.
    ///
    /// # Errors
    /// If they can't be served.
    pub(crate) fn load_acme(
        path: &Path,
        name: &str,
        provider: &CryptoProvider,
    ) -> Result<Self, CertificateError> {
        let (pem, _) = read(path)?;
        Self::of_acme(&pem, path, name, provider)
    }

    /// Like [`Certificate::load_acme`], from what is to be in the file.
    ///
    /// # Errors
    /// If they can't be served.
    pub(crate) fn of_acme(
        pem: &[u8],
        path: &Path,
        name: &str,
        provider: &CryptoProvider,
    ) -> Result<Self, CertificateError> {
        let files = CertificateFiles { cert: path.to_owned(), key: path.to_owned() };
        let certificate = Self::parse(&files, pem, pem, Source::Acme(path.to_owned()), provider)?;
        Ok(Self { name: name.to_owned(), ..certificate })
    }

    /// The key identifier of its authority and its serial number, which together identify it; `None` if it has no such
    /// key identifier.
    #[must_use]
    pub(crate) fn identity(&self) -> Option<(&[u8], &[u8])> {
        let leaf = self.key.cert.first()?;
        Some((der::authority_key_identifier(leaf)?, der::serial_number(leaf)?))
    }

    /// Whether every local user can read its key.
    #[must_use]
    pub(crate) fn is_key_exposed(&self) -> bool {
        let key = self.files().map(|files| &files.key);
        key.and_then(|key| fs::metadata(key).ok()).is_some_and(|key| key.mode() & 0o004 != 0)
    }

    fn parse(
        files: &CertificateFiles,
        cert_pem: &[u8],
        key_pem: &[u8],
        source: Source,
        provider: &CryptoProvider,
    ) -> Result<Self, CertificateError> {
        let chain = chain(&files.cert, cert_pem)?;
        let key = key(&files.key, key_pem)?;
        let leaf = chain.first().map(|leaf| leaf.to_vec()).unwrap_or_default();
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| rejected(files, &error))?;
        let unusable =
            |why: &str| CertificateError::Unusable { path: files.cert.clone(), why: why.to_owned() };
        let validity = der::validity(&leaf).ok_or_else(|| unusable("its validity dates can't be parsed"))?;
        let names: Vec<String> = der::dns_names(&leaf)
            .into_iter()
            .map(|name| name.trim_end_matches('.').to_ascii_lowercase())
            .collect();
        let file = || files.cert.display().to_string();
        Ok(Self {
            name: names.first().cloned().unwrap_or_else(file),
            names,
            source,
            not_before: validity.not_before,
            not_after: validity.not_after,
            key: Arc::new(key),
        })
    }

    /// The files that the configuration names for it.
    #[must_use]
    pub(crate) fn files(&self) -> Option<&CertificateFiles> {
        match &self.source {
            Source::Files(files, _) => Some(files),
            Source::Acme(_) => None,
        }
    }

    /// The file that contains it.
    #[must_use]
    pub(crate) fn file(&self) -> &Path {
        match &self.source {
            Source::Files(files, _) => &files.cert,
            Source::Acme(file) => file,
        }
    }

    /// Whether one of its files has changed since it was read.
    #[must_use]
    pub(crate) fn has_changed(&self) -> bool {
        let Source::Files(files, Stamps(stamps)) = &self.source else { return false };
        [&files.cert, &files.key].into_iter().zip(*stamps).any(|(path, stamp)| {
            // Counts as changed: the attempt to read the file then reports the error.
            fs::metadata(path).map_or(true, |file| Stamp::from(&file) != stamp)
        })
    }

    /// Whether both have the same certificate chain.
    #[must_use]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
    }

    /// Checks that the certificate is valid at this time.
    ///
    /// # Errors
    /// If it has expired or isn't valid yet.
    pub(crate) fn check_dates(&self, now: Timestamp) -> Result<(), CertificateError> {
        let at = |second| Timestamp::from_second(second).unwrap_or_default();
        let path = || self.file().to_owned();
        if now.as_second() > self.not_after {
            return Err(CertificateError::Expired { path: path(), at: at(self.not_after) });
        }
        if now.as_second() < self.not_before {
            return Err(CertificateError::NotYet { path: path(), at: at(self.not_before) });
        }
        Ok(())
    }

    /// Whether it covers this host, which must be in lower case.
    #[must_use]
    pub(crate) fn covers(&self, host: &str) -> bool {
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
    let not_a_file = |why| CertificateError::NotAFile { path: path.to_owned(), why };
    // Otherwise, opening a pipe would block until it has a writer.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let metadata: fs::Metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(not_a_file("it isn't a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(not_a_file("it is larger than 1 MiB"));
    }
    Ok((bytes, Stamp::from(&metadata)))
}

fn chain(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|error| {
        CertificateError::Unusable { path: path.to_owned(), why: format!("invalid PEM ({error})") }
    })?;
    if chain.is_empty() {
        let hint = if contains(pem, "PRIVATE KEY") { " but a private key; swap cert and key" } else { "" };
        return Err(CertificateError::NoCertificate { path: path.to_owned(), hint });
    }
    Ok(chain)
}

fn key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        let hint = if contains(pem, "ENCRYPTED") {
            " that can be used without a passphrase; decrypt it with: openssl pkey -in OLD -out NEW"
        } else if contains(pem, "CERTIFICATE") {
            " but a certificate; swap cert and key"
        } else {
            " in PEM format"
        };
        CertificateError::NoKey { path: path.to_owned(), hint }
    })
}

fn contains(pem: &[u8], text: &str) -> bool {
    memchr::memmem::find(pem, text.as_bytes()).is_some()
}

fn rejected(files: &CertificateFiles, error: &Error) -> CertificateError {
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
