//! pebble with its DNS server, and proxies that get their certificates from it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;
use uh_protocol::status::CertificateStatus;

use crate::harness::{Home, Proxy, SampleApp};
use crate::tls::certificates::Authority;
use crate::tls::clients::{Rustls, Secure};

/// How long pebble and uh-proxy may take for a certificate on a busy machine.
const ISSUED_WITHIN: Duration = Duration::from_secs(60);

/// A port that is free, and that the system gives to no outgoing connection: a restart finds it free again.
fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let is_free = |port: &u16| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok() && GIVEN.lock().unwrap().insert(*port)
    };
    (0..1000).map(|_| fastrand::u16(10_000..32_000)).find(is_free).expect("a free port")
}

/// The ports on which pebble looks for proofs.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) http: u16,
    pub(crate) tls: u16,
}

impl Ports {
    pub(crate) fn new() -> Self {
        Self { http: free_port(), tls: free_port() }
    }
}

/// A running certificate authority. Ended when dropped.
pub(crate) struct Pebble {
    programs: Vec<Child>,
    dir: TempDir,
    authority: Authority,
    port: u16,
    management: SocketAddr,
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for program in &mut self.programs {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

impl Pebble {
    /// `None`, with a line that says so, where pebble isn't installed.
    pub(crate) async fn start(ports: Ports) -> Option<Self> {
        Self::start_with(ports, 90 * 24 * 60 * 60, 5).await
    }

    /// With a lifetime for its certificates, and the share of good nonces that it rejects.
    pub(crate) async fn start_with(ports: Ports, lifetime_s: u64, nonces_rejected: u8) -> Option<Self> {
        if Command::new("pebble").arg("-h").stderr(Stdio::null()).status().is_err() {
            eprintln!("skipped: pebble isn't installed (Debian: apt-get install pebble)");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("uh-proxy-pebble-").tempdir().unwrap();
        let authority = Authority::new();
        let pair = authority.issue(&["localhost"]);
        for (name, text) in [("cert.pem", &pair.cert), ("key.pem", &pair.key), ("ca.pem", &authority.pem())] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let (port, management, dns, dns_management) = (free_port(), free_port(), free_port(), free_port());
        let config = serde_json::json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": dir.path().join("cert.pem"),
            "privateKey": dir.path().join("key.pem"),
            "httpPort": ports.http,
            "tlsPort": ports.tls,
            "certificateValidityPeriod": lifetime_s,
        }});
        fs::write(dir.path().join("pebble.json"), config.to_string()).unwrap();
        let log = |name: &str| fs::File::create(dir.path().join(name)).unwrap();
        let names = Command::new("pebble-challtestsrv")
            .args(["-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", ""])
            .args([
                "-dns01",
                &format!("127.0.0.1:{dns}"),
                "-management",
                &format!("127.0.0.1:{dns_management}"),
            ])
            .stdin(Stdio::null())
            .stdout(log("dns.log"))
            .stderr(log("dns-errors.log"))
            .spawn()
            .unwrap();
        let pebble = Command::new("pebble")
            .args(["-dnsserver", &format!("127.0.0.1:{dns}"), "-config"])
            .arg(dir.path().join("pebble.json"))
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "0")
            .env("PEBBLE_WFE_NONCEREJECT", nonces_rejected.to_string())
            .stdin(Stdio::null())
            .stdout(log("pebble.log"))
            .stderr(log("pebble-errors.log"))
            .spawn()
            .unwrap();
        let management = (Ipv4Addr::LOCALHOST, management).into();
        let pebble = Self { programs: vec![names, pebble], dir, authority, port, management };
        let deadline = Instant::now() + ISSUED_WITHIN;
        // Without its names, pebble would reject the first proof.
        for address in [management, (Ipv4Addr::LOCALHOST, dns).into()] {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                assert!(Instant::now() < deadline, "pebble doesn't start:\n{}", pebble.log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Some(pebble)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.port)
    }

    /// Issues certificates for servers that uh-proxy trusts like this one.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub(crate) fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        format!("{}{}", read("pebble.log"), read("pebble-errors.log"))
    }

    /// The orders that were placed.
    pub(crate) fn orders(&self) -> usize {
        self.log().matches("Added order \"").count()
    }

    /// The accounts that were registered.
    pub(crate) fn accounts(&self) -> usize {
        self.log().lines().filter(|line| line.contains("accounts in memory")).count()
    }

    /// A client that trusts the certificates it issues.
    pub(crate) async fn client(&self) -> Rustls {
        let mut connection = self.management_connection().await;
        let pem = connection.get("/roots/0").await.text();
        let root = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        Rustls::trusting(root)
    }

    async fn management_connection(&self) -> Secure {
        Rustls::new(&self.authority).connect(self.management, "localhost").await.unwrap()
    }
}

/// The two apps behind a proxy.
pub(crate) struct Apps(SampleApp, SampleApp);

impl Apps {
    pub(crate) async fn start() -> Self {
        Self(SampleApp::start("blue", "1.0.0").await, SampleApp::start("green", "1.0.1").await)
    }

    /// A home for hosts `app.test` and `www.app.test`, with these lines in `[server.acme]`.
    pub(crate) fn home(&self, pebble: &Pebble, ports: Ports, acme: &str) -> Home {
        self.home_for(pebble, ports, acme, "hosts = [\"app.test\"]\nredirect_hosts = [\"www.app.test\"]")
    }

    /// With these lines in `[services.app]`.
    pub(crate) fn home_for(&self, pebble: &Pebble, ports: Ports, acme: &str, service: &str) -> Home {
        let directory = pebble.directory();
        self.home_at(&directory, pebble.ca_file(), ports, acme, service)
    }

    pub(crate) fn home_at(
        &self,
        directory: &str,
        ca_file: PathBuf,
        ports: Ports,
        acme: &str,
        service: &str,
    ) -> Home {
        self.home_with(directory, ca_file, ports, "", acme, service)
    }

    /// The same, with lines in `[server]`.
    pub(crate) fn home_with(
        &self,
        directory: &str,
        ca_file: PathBuf,
        ports: Ports,
        server: &str,
        acme: &str,
        service: &str,
    ) -> Home {
        let Ports { http, tls } = ports;
        let home = Home::new(self.0.address, self.1.address);
        let state = home.path("acme");
        home.server(&format!(
            "{server}\nlisten = [\"127.0.0.1:{http}\"]\nlisten_tls = [\"127.0.0.1:{tls}\"]\n[server.acme]\n\
             directory = {directory:?}\nca_file = {ca_file:?}\nstate_dir = {state:?}\n{acme}"
        ))
        .service(service)
    }
}

/// The address of HTTPS.
pub(crate) fn https(ports: Ports) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, ports.tls).into()
}

/// Waits until a certificate is like this.
pub(crate) async fn until_certificate(
    home: &Home,
    proxy: &Proxy,
    what: &str,
    is_so: impl Fn(&CertificateStatus) -> bool,
) -> CertificateStatus {
    let deadline = Instant::now() + ISSUED_WITHIN;
    loop {
        let list = proxy.client.certificates().await.unwrap().certificates;
        if let Some(found) = list.iter().find(|certificate| is_so(certificate)) {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "timed out waiting until {what}: {list:?}\n{}", home.messages());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the certificate is issued.
pub(crate) async fn until_issued(home: &Home, proxy: &Proxy) -> CertificateStatus {
    until_certificate(home, proxy, "it is issued", |certificate| certificate.expires.is_some()).await
}

/// Makes a request over HTTPS, and returns its status and the certificate that was served.
pub(crate) async fn visit(client: &Rustls, ports: Ports, host: &str) -> (u16, Vec<u8>) {
    let mut connection = client.connect(https(ports), host).await.unwrap();
    connection.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    let status = connection.response().await.status;
    let served = connection.stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    (status, served)
}
