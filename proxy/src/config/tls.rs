//! `[server.tls]`: certificates, redirects and HSTS.

use std::path::PathBuf;
use std::time::Duration;

use uh_settings::Section;
use uh_settings::units::DAY;

/// The settings for HTTPS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The oldest TLS version that clients may use.
    pub min_version: TlsVersion,
    /// Whether plain HTTP is redirected to HTTPS. Services can override it.
    pub redirect: bool,
    /// The port in redirects: the one on which clients reach the TLS listener.
    pub redirect_port: u16,
    /// If set, tells browsers to use HTTPS only.
    pub hsts: Option<Hsts>,
    /// Those from files; at least one, unless there is ACME. Clients that send no SNI get the first.
    pub certificates: Vec<CertificateFiles>,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    Tls12,
    /// TLS 1.3 (RFC 8446).
    Tls13,
}

/// A certificate and its private key, both as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, followed by its intermediate certificates.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// `Strict-Transport-Security` (RFC 6797).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hsts {
    /// How long a browser remembers it.
    pub max_age: Duration,
    /// Whether it also applies to all subdomains.
    pub include_subdomains: bool,
    /// Whether browsers may add the host to their built-in list.
    pub preload: bool,
}

impl Hsts {
    /// The field's value.
    #[must_use]
    pub fn value(&self) -> String {
        let mut value = format!("max-age={}", self.max_age.as_secs());
        if self.include_subdomains {
            value.push_str("; includeSubDomains");
        }
        if self.preload {
            value.push_str("; preload");
        }
        value
    }
}

/// The minimum for browsers' built-in lists (hstspreload.org).
const PRELOAD_MAX_AGE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Ten years, more than any browser needs.
const MAX_AGE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// `None`: the file has no such table.
pub(super) fn tls(server: &mut Section) -> Option<Tls> {
    let acme = server.has("acme");
    if !server.has("tls") && !acme {
        if server.has("listen_tls") {
            let reason = "it needs certificates: add [server.acme], or [server.tls] with certificates = [{ cert = \"…\", key = \"…\" }]";
            server.mistake("listen_tls", reason);
        }
        return None;
    }
    if server.has("tls") && !server.has("listen_tls") {
        server.mistake("tls", "no listener uses it; add server.listen_tls = [\"0.0.0.0:443\"]");
    }
    let mut section = server.section("tls");
    let versions = [("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)];
    let certificates = certificates(&mut section, acme);
    let port = section.integer("redirect_port", 443, (1, u32::from(u16::MAX)));
    Some(Tls {
        min_version: section.choice("min_version", TlsVersion::Tls12, &versions),
        redirect: section.boolean("redirect", false),
        redirect_port: u16::try_from(port).unwrap_or(443),
        hsts: section.has("hsts").then(|| hsts(&mut section.section("hsts"))),
        certificates,
    })
}

fn certificates(section: &mut Section, acme: bool) -> Vec<CertificateFiles> {
    let missing = !section.has("certificates") || section.is_empty_list("certificates");
    if missing && !acme {
        let reason = "missing: list at least one, such as [{ cert = \"/etc/…/fullchain.pem\", key = \"/etc/…/privkey.pem\" }], or add [server.acme]";
        section.mistake("certificates", reason);
    }
    section.tables("certificates").into_iter().filter_map(certificate).collect()
}

fn certificate(mut section: Section) -> Option<CertificateFiles> {
    for (key, what) in [("cert", "the certificate with its chain"), ("key", "its private key")] {
        if !section.has(key) {
            section.mistake(key, format!("missing: the PEM file of {what}"));
        }
    }
    let (cert, key) = (section.optional_path("cert"), section.optional_path("key"));
    Some(CertificateFiles { cert: cert?, key: key? })
}

fn hsts(section: &mut Section) -> Hsts {
    if !section.has("max_age") {
        section.mistake("max_age", "missing: how long browsers remember it, such as \"8760h\"");
    }
    let hsts = Hsts {
        max_age: section.duration("max_age", DAY, (Duration::ZERO, MAX_AGE)),
        include_subdomains: section.boolean("include_subdomains", false),
        preload: section.boolean("preload", false),
    };
    if hsts.max_age > Duration::ZERO && hsts.max_age < DAY {
        section.mistake(
            "max_age",
            "less than a day has no protective effect; use 24h or more, or 0s to withdraw it",
        );
    }
    if hsts.preload && !(hsts.include_subdomains && hsts.max_age >= PRELOAD_MAX_AGE) {
        let reason = "browsers only list hosts with include_subdomains = true and a max_age of 8760h or more";
        section.mistake("preload", reason);
    }
    hsts
}
