//! The overlays for HTTPS: with certificates from files, and with automatic ones from a certificate authority in the same
//! network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use uh_e2e::repository;
use uh_e2e::stack::Stack;
use uh_testkit::process::{Finished, run};
use uh_testkit::wait::{free_address, until_within};

use super::{SOON, deploy};

/// The host of the shipped certificates' directory.
const HOST: &str = "example.com";

/// A certificate authority of the test.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Authority of a test");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes a new certificate for a host and its key, each in one step, and returns the certificate.
    fn issue(&self, host: &str, dir: &Path, names: [&str; 2]) -> String {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap().pem();
        for (name, text) in names.into_iter().zip([cert.clone(), key.serialize_pem()]) {
            let new = dir.join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, dir.join(name)).unwrap();
        }
        cert
    }
}

/// Requests a URL of a host as clients from outside do, trusting these certificates.
async fn curl(stack: &Stack, ca: &Path, args: &[&str], url: &str) -> Finished {
    let host = url.split('/').nth(2).unwrap().split(':').next().unwrap();
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "20", "--cacert"]).arg(ca);
    for address in [stack.address, stack.https] {
        command.args(["--resolve", &format!("{host}:{}:127.0.0.1", address.port())]);
    }
    run(
        {
            command.args(args).arg(url);
            command
        },
        SOON,
    )
    .await
    .unwrap()
}

/// The certificate that new connections get.
async fn served(stack: &Stack, host: &str) -> String {
    let script = format!(
        "openssl s_client -connect {} -servername {host} </dev/null 2>/dev/null | openssl x509",
        stack.https
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    run(command, SOON).await.unwrap().output
}

/// The shipped configuration, with what its comments offer for HTTPS and redirects to where the test publishes it.
fn with_https(stack: &Stack) -> String {
    let text = fs::read_to_string(repository::path("docker/uh-proxy.toml")).unwrap();
    let mut enabled = String::new();
    for line in text.lines() {
        let offered = ["# listen_tls = ", "# [server.tls]", "# certificates = "];
        let is_offered = offered.iter().any(|offered| line.starts_with(offered));
        enabled.push_str(if is_offered { line.trim_start_matches("# ") } else { line });
        enabled.push('\n');
        if line.starts_with("# certificates = ") {
            enabled.push_str(&format!("redirect = true\nredirect_port = {}\n", stack.https.port()));
        }
    }
    assert!(
        enabled.contains("\n[server.tls]\ncertificates = ") && enabled.contains("\nlisten_tls = "),
        "{enabled}"
    );
    enabled
}

/// Clients that make new connections all the time, over both protocols. Any failure fails the test.
fn clients(
    stack: &Stack,
    ca: &Path,
    stop: &Arc<AtomicBool>,
    served: &Arc<AtomicU64>,
) -> Vec<tokio::task::JoinHandle<()>> {
    let url = format!("https://{HOST}:{}/", stack.https.port());
    let resolve = format!("{HOST}:{}:127.0.0.1", stack.https.port());
    let client = |protocol: &'static str| {
        let (stop, served) = (Arc::clone(stop), Arc::clone(served));
        let (ca, url, resolve) = (ca.to_owned(), url.clone(), resolve.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let mut command = Command::new("curl");
                command.args([
                    "--silent",
                    "--show-error",
                    "--fail",
                    "--max-time",
                    "20",
                    protocol,
                    "--cacert",
                ]);
                command.arg(&ca).args(["--resolve", &resolve]);
                // Several on one connection.
                command.args([&url, &url, &url]);
                let finished = run(command, SOON).await.unwrap();
                assert!(finished.status.success(), "{protocol}: {}", finished.output);
                served.fetch_add(3, Ordering::Relaxed);
            }
        })
    };
    ["--http2", "--http1.1"].map(client).into()
}

#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn the_tls_overlay_serves_https_redirects_and_drops_nothing_at_a_switch_or_a_renewal() {
    let files = ["docker-compose.yml", "docker-compose.prod.yml", "docker-compose.tls.yml"];
    let mut stack = Stack::new("tls", &files).unwrap();
    let authority = Authority::new();
    let ca = stack.dir().join("ca.pem");
    fs::write(&ca, authority.0.pem()).unwrap();
    let tls = stack.dir().join("tls");
    let certificates = tls.join(HOST);
    fs::create_dir_all(&certificates).unwrap();
    const NAMES: [&str; 2] = ["fullchain.pem", "privkey.pem"];
    let first = authority.issue(HOST, &certificates, NAMES);
    stack.set("UH_TLS", tls.to_str().unwrap()).unwrap();
    let configuration = with_https(&stack);
    mount_configuration(&mut stack, &configuration, "");
    stack.compose(&["up", "--detach", "--no-build"]).await.unwrap();
    stack.wait_for_the_first_deploy().await.unwrap();

    let (port, secure_port) = (stack.address.port(), stack.https.port());
    let secure = format!("https://{HOST}:{secure_port}/");
    for (protocol, line) in [("--http2", "HTTP/2 200"), ("--http1.1", "HTTP/1.1 200")] {
        let said = curl(&stack, &ca, &["--include", protocol], &secure).await.output;
        assert!(said.starts_with(line) && said.contains("blue 1.0.0"), "{protocol}: {said}");
    }
    let plain = format!("http://{HOST}:{port}/a?b=c");
    let said = curl(&stack, &ca, &["--include"], &plain).await.output;
    let location = format!("location: https://{HOST}:{secure_port}/a?b=c\r\n");
    assert!(said.starts_with("HTTP/1.1 308 ") && said.to_lowercase().contains(&location), "{said}");
    let followed =
        curl(&stack, &ca, &["--location", "--include"], &format!("http://{HOST}:{port}/")).await.output;
    assert!(followed.contains("HTTP/2 200") && followed.contains("blue 1.0.0"), "{followed}");

    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients = clients(&stack, &ca, &stop, &count);
    deploy(&stack, "green", "1.0.1").await;
    let said = curl(&stack, &ca, &[], &secure).await.output;
    assert_eq!(said.trim(), "green 1.0.1");
    let started = stack.inspect("proxy", ".State.StartedAt").await.unwrap();
    assert_eq!(served(&stack, HOST).await.trim(), first.trim());
    let renewed = authority.issue(HOST, &certificates, NAMES);
    // There is no signal and no reload: uh-proxy looks every 30 seconds.
    let is_served = async || (served(&stack, HOST).await.trim() == renewed.trim()).then_some(());
    until_within(SOON, "the renewed certificate is served", is_served).await.unwrap();
    assert_eq!(stack.inspect("proxy", ".State.StartedAt").await.unwrap(), started);
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    println!("HTTPS over a deploy and a renewal: {} requests, 0 failed", count.load(Ordering::Relaxed));
}

/// Mounts a configuration of uh-proxy instead of the shipped one, with more lines for its service.
fn mount_configuration(stack: &mut Stack, text: &str, more: &str) {
    let file = stack.dir().join("uh-proxy.toml");
    fs::write(&file, text).unwrap();
    let mount = format!("      - {}:/etc/uh-proxy/uh-proxy.toml:ro\n", file.display());
    stack.overlay(&format!("services:\n  proxy:\n    volumes:\n{mount}{more}")).unwrap();
}

/// Where pebble is mounted from: Debian's package `pebble`.
fn pebble() -> Option<PathBuf> {
    let program = PathBuf::from("/usr/bin/pebble");
    program.exists().then_some(program)
}

/// The overlay with automatic certificates, against pebble: a certificate authority for tests.
#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn the_acme_overlay_gets_a_certificate_and_keeps_it_in_its_volume() {
    const HOST: &str = "app.example.com";
    let Some(pebble) = pebble() else {
        println!("skipped: pebble isn't installed (Debian: pebble)");
        return;
    };
    let mut stack = Stack::new("acme", &["docker-compose.yml", "docker-compose.acme.yml"]).unwrap();
    let authority = Authority::new();
    let dir = stack.dir().join("pebble");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("ca.pem"), authority.0.pem()).unwrap();
    authority.issue("pebble", &dir, ["cert.pem", "key.pem"]);
    let config = "{\"pebble\": {\"listenAddress\": \"0.0.0.0:14000\", \"managementListenAddress\": \"0.0.0.0:15000\", \
         \"certificate\": \"/etc/pebble/cert.pem\", \"privateKey\": \"/etc/pebble/key.pem\", \"httpPort\": 80, \"tlsPort\": 443}}";
    fs::write(dir.join("pebble.json"), config).unwrap();
    let management = free_address();
    // The authority finds uh-proxy by the host's name.
    let more = format!(
        "      - {dir}/ca.pem:/etc/uh-proxy/ca.pem:ro\n    depends_on: [pebble]\n  keeper:\n    networks:\n      default:\n        aliases: [{HOST}]\n\
         \x20 pebble:\n    image: debian:bookworm-slim\n    command: [/usr/bin/pebble, -config, /etc/pebble/pebble.json]\n\
         \x20   environment: {{PEBBLE_VA_NOSLEEP: \"1\", PEBBLE_AUTHZREUSE: \"0\"}}\n    volumes:\n\
         \x20     - {program}:/usr/bin/pebble:ro\n      - {dir}:/etc/pebble:ro\n    ports: [\"{management}:15000\"]\n",
        dir = dir.display(),
        program = pebble.display(),
    );
    let shipped = fs::read_to_string(repository::path("docker/uh-proxy.acme.toml")).unwrap();
    let directory = "directory = \"https://acme-staging-v02.api.letsencrypt.org/directory\"";
    let ours = "directory = \"https://pebble:14000/dir\"\nca_file = \"/etc/uh-proxy/ca.pem\"";
    assert!(shipped.contains(directory), "{shipped}");
    mount_configuration(&mut stack, &shipped.replace(directory, ours), &more);
    stack.compose(&["up", "--detach", "--no-build"]).await.unwrap();
    stack.wait_for_the_first_deploy().await.unwrap();
    let issued = async || {
        let listed = stack.uh_proxy(&["certificates"]).await.unwrap();
        listed.status.success().then_some(listed.output)
    };
    // A minute more if the authority wasn't there at the first attempt.
    let listed = until_within(2 * SOON + Duration::from_secs(30), "the certificate is issued", issued).await;
    let listed = match listed {
        Ok(listed) => listed,
        Err(error) => panic!("{error}\n{}", stack.compose(&["logs", "--no-color"]).await.unwrap()),
    };
    println!("{}", listed.trim());
    let root = stack.dir().join("root.pem");
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--insecure", "--output"])
        .arg(&root)
        .arg(format!("https://{management}/roots/0"));
    assert!(run(command, SOON).await.unwrap().status.success());
    let secure = format!("https://{HOST}:{}/", stack.https.port());
    let said = curl(&stack, &root, &["--include", "--http2"], &secure).await.output;
    assert!(said.starts_with("HTTP/2 200") && said.contains("blue 1.0.0"), "{said}");
    let first = served(&stack, HOST).await;
    // Another container with the same volume orders nothing.
    stack.compose(&["up", "--detach", "--no-build", "--no-deps", "--force-recreate", "proxy"]).await.unwrap();
    let again =
        async || Some(served(&stack, HOST).await).filter(|served| served.contains("BEGIN CERTIFICATE"));
    assert_eq!(until_within(SOON, "it serves again", again).await.unwrap(), first);
    let log = stack.docker(&["logs"], "pebble").await.unwrap();
    assert_eq!(log.matches("Added order \"").count(), 1, "{log}");
}
