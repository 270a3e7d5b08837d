//! `[server.acme]`: certificates from a certificate authority (CA) that speaks ACME (RFC 8555).

use std::path::PathBuf;

use super::Service;
use uh_settings::Section;

/// The directory of Let's Encrypt.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// How to get certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// Where the CA can reach the operator, such as `mailto:ops@example.com`.
    pub contact: Vec<String>,
    /// The CA's directory, an `https` URL.
    pub directory: String,
    /// The certificates of a private CA, to trust its directory; `None`: the public CAs.
    pub ca_file: Option<PathBuf>,
    /// Where the account and the certificates are kept.
    pub state_dir: PathBuf,
    /// How the CA checks that a host is ours.
    pub challenge: AcmeChallenge,
    /// One of the CA's profiles; `None`: its default.
    pub profile: Option<String>,
    /// The hosts of each certificate; `None`: one certificate for the hosts of each service.
    pub certificates: Option<Vec<Vec<String>>>,
}

/// How a CA checks that a host is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// By a request to port 80.
    Http01,
    /// By a TLS handshake on port 443.
    TlsAlpn01,
}

impl AcmeChallenge {
    /// Its name in RFC 8555 and RFC 8737, and in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }
}

/// `None`: the file has no such table.
pub(super) fn acme(server: &mut Section) -> Option<Acme> {
    if !server.has("acme") {
        return None;
    }
    let plain = server.has("listen") && !server.is_empty_list("listen");
    if !server.has("listen_tls") {
        let reason = "no listener uses its certificates; add server.listen_tls = [\"0.0.0.0:443\"]";
        server.mistake("acme", reason);
    }
    let mut section = server.section("acme");
    let challenges = [AcmeChallenge::Http01, AcmeChallenge::TlsAlpn01].map(|one| (one.as_str(), one));
    let challenge = section.choice("challenge", AcmeChallenge::Http01, &challenges);
    if challenge == AcmeChallenge::Http01 && !plain {
        let reason = "http-01 needs a plain HTTP listener: add server.listen = [\"0.0.0.0:80\"], or use \"tls-alpn-01\"";
        section.mistake("challenge", reason);
    }
    let directory = section.text("directory").unwrap_or_else(|| LETS_ENCRYPT.to_owned());
    if !is_directory(&directory) {
        section.mistake("directory", "expected an https:// URL, which the CA's documentation lists");
    }
    let profile = section.text("profile");
    if profile.as_ref().is_some_and(String::is_empty) {
        section.mistake("profile", "expected the name of a profile; leave it out for the CA's default");
    }
    Some(Acme {
        contact: contact(&mut section),
        directory,
        ca_file: section.optional_path("ca_file"),
        state_dir: section.path("state_dir", "/var/lib/uh-proxy/acme"),
        challenge,
        profile,
        certificates: certificates(&mut section),
    })
}

fn is_directory(url: &str) -> bool {
    url.parse::<hyper::Uri>()
        .is_ok_and(|url| url.scheme_str() == Some("https") && url.host().is_some_and(|host| !host.is_empty()))
}

fn contact(section: &mut Section) -> Vec<String> {
    let contact = section.list::<String>("contact").unwrap_or_default();
    for (index, one) in contact.iter().enumerate() {
        let address = one.strip_prefix("mailto:").unwrap_or_default();
        if !address.contains('@') || address.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
            let reason = format!(
                "{one:?} isn't a contact: use mailto: and an address, such as \"mailto:ops@example.com\""
            );
            section.mistake(&format!("contact[{index}]"), reason);
        }
    }
    contact
}

fn certificates(section: &mut Section) -> Option<Vec<Vec<String>>> {
    if !section.has("certificates") {
        return None;
    }
    if section.is_empty_list("certificates") {
        section.mistake(
            "certificates",
            "list at least one, such as [{ hosts = [\"example.com\"] }], or leave it out",
        );
    }
    let hosts = |mut table: Section| {
        let hosts = super::service::hosts(&mut table, "hosts");
        if hosts.is_empty() {
            table.mistake("hosts", "missing: list at least one host");
        }
        for host in hosts.iter().filter(|host| !can_be_certified(host)) {
            table.mistake(
                "hosts",
                format!(
                    "{host} can't get a certificate with these challenges: use a host name without a wildcard"
                ),
            );
        }
        hosts
    };
    Some(section.tables("certificates").into_iter().map(hosts).collect())
}

/// Whether HTTP-01 and TLS-ALPN-01 work for a host. Wildcards need a DNS record; for addresses, few CAs issue.
#[must_use]
pub fn can_be_certified(host: &str) -> bool {
    let address = host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok();
    !host.starts_with('*') && !address
}

/// Reports a configuration that names no host.
pub(super) fn check_hosts(root: &Section, acme: Option<&Acme>, services: &[Service]) {
    let Some(Acme { certificates: None, .. }) = acme else { return };
    if !services.iter().flat_map(|service| &service.hosts).any(|host| can_be_certified(host)) {
        let reason = "no service has a host that can get a certificate: set services.NAME.hosts, or list them here as certificates = [{ hosts = [\"example.com\"] }]";
        root.mistake("server.acme", reason);
    }
}
