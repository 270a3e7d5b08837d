//! A certificate authority, and proxies that serve its certificates.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SerialNumber, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::harness::{Home, Proxy, SampleApp};

static SERIAL: AtomicU64 = AtomicU64::new(1000);

/// A certificate authority that the tests' clients trust.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A unique name, so that clients can't confuse two authorities.
        let name = format!("Authority {}", SERIAL.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// A certificate for these names, valid for decades.
    pub(crate) fn issue(&self, names: &[&str]) -> Pair {
        self.issue_until(names, 2090)
    }

    /// A certificate for these names, valid until the start of a year.
    pub(crate) fn issue_until(&self, names: &[&str], year: i32) -> Pair {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }
}

/// A certificate in PEM, as DER.
pub(crate) fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// Writes a pair of files into a home, and returns their entry for the configuration.
pub(crate) fn put(home: &Home, name: &str, pair: &Pair) -> String {
    let (cert, key) = (home.path(&format!("{name}.crt")), home.path(&format!("{name}.key")));
    fs::write(&cert, &pair.cert).unwrap();
    fs::write(&key, &pair.key).unwrap();
    format!("{{ cert = {cert:?}, key = {key:?} }}")
}

/// A home that serves HTTPS with these certificates, each with its file name.
pub(crate) fn home(
    apps: (impl ToString, impl ToString),
    authority: &Authority,
    pairs: &[(&str, &Pair)],
    server: &str,
    more: &str,
) -> Home {
    let home = Home::new(apps.0, apps.1).server("listen_tls = [\"127.0.0.1:0\"]").server(server);
    fs::write(home.path("ca.pem"), authority.pem()).unwrap();
    let certificates: Vec<String> = pairs.iter().map(|(name, pair)| put(&home, name, pair)).collect();
    home.server(&format!("[server.tls]\ncertificates = [{}]\n{more}", certificates.join(", ")))
}

/// The address on which the proxy serves HTTPS.
pub(crate) async fn address(proxy: &Proxy) -> SocketAddr {
    proxy.status().await.proxy.listen_tls[0].parse().unwrap()
}

/// A proxy with one certificate, for `app.test`, in front of the sample apps.
pub(crate) struct Site {
    pub(crate) home: Home,
    pub(crate) proxy: Proxy,
    pub(crate) authority: Authority,
    pub(crate) pair: Pair,
    pub(crate) address: SocketAddr,
    _apps: (SampleApp, SampleApp),
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self::start_with("", "").await
    }

    /// Adds lines to `[server]` and `[server.tls]`.
    pub(crate) async fn start_with(server: &str, more: &str) -> Self {
        Self::start_as(server, more, |home| home).await
    }

    /// The same, with a home that is changed before uh-proxy starts.
    pub(crate) async fn start_as(server: &str, more: &str, change: impl FnOnce(Home) -> Home) -> Self {
        let authority = Authority::new();
        let pair = authority.issue(&["app.test"]);
        let apps = (SampleApp::start("blue", "1.0.0").await, SampleApp::start("green", "1.0.1").await);
        let apps_at = (apps.0.address, apps.1.address);
        let home = change(home(apps_at, &authority, &[("app", &pair)], server, more));
        let proxy = home.start().await;
        proxy.until_healthy().await;
        let address = address(&proxy).await;
        Self { home, proxy, authority, pair, address, _apps: apps }
    }
}
