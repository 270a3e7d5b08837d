//! The shipped units of uh-proxy, with sockets for HTTP and HTTPS, set up as docs/tls.md says.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use super::{Machine, docker, image_or_skip};
use crate::harness::{Ran, until};

const HOST: &str = "example.com";

const RESTARTS: usize = 5;

/// As an administrator does on a machine (docs/operations.md).
const INSTALL: &str = "set -e
useradd --system --no-create-home --shell /usr/sbin/nologin uh-proxy
install /opt/uh/uh-proxy /usr/local/bin/
install -m 644 /srv/uh/uh-proxy.service /srv/uh/uh-proxy.socket /etc/systemd/system/
install -D -m 644 /srv/uh/plain.toml /etc/uh-proxy/uh-proxy.toml
systemd-run --quiet --unit=blue --setenv=PORT=3008 --setenv=APP_VERSION=1.0.0 /opt/uh/uh-sample-app
systemctl daemon-reload
systemctl start uh-proxy.socket uh-proxy.service";

/// Steps 1 and 2 of docs/tls.md.
const ADD_HTTPS: &str = "set -e
install -d -g uh-proxy -m 750 /etc/uh-proxy/tls /etc/uh-proxy/tls/example.com
install -g uh-proxy -m 640 /srv/uh/fullchain.pem /srv/uh/privkey.pem /etc/uh-proxy/tls/example.com
install -m 644 /srv/uh/https.toml /etc/uh-proxy/uh-proxy.toml";

/// Step 3.
const CHECK: &str = "setpriv --reuid uh-proxy --regid uh-proxy --init-groups --inh-caps=+net_bind_service \
     --ambient-caps=+net_bind_service uh-proxy check --config /etc/uh-proxy/uh-proxy.toml";

/// Steps 4 and 5.
const ADD_SOCKET: &str = "set -e
mkdir /etc/systemd/system/uh-proxy.socket.d
printf '[Socket]\\nListenStream=0.0.0.0:443\\n' >/etc/systemd/system/uh-proxy.socket.d/override.conf
systemctl daemon-reload
systemctl restart uh-proxy.socket uh-proxy.service";

/// Writes what the machine finds in `/srv/uh`.
fn prepare(dir: &Path) {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    for unit in ["uh-proxy.service", "uh-proxy.socket"] {
        fs::copy(shipped.join(unit), dir.join(unit)).unwrap();
    }
    let app =
        "[services.app]\nactive = \"blue\"\n[services.app.backends.blue]\nendpoints = [\"127.0.0.1:3008\"]\n";
    let plain = "[server]\nlisten = [\"0.0.0.0:80\"]\n";
    let https = "listen_tls = [\"0.0.0.0:443\"]\n[server.tls]\ncertificates = [{ cert = \"/etc/uh-proxy/tls/example.com/fullchain.pem\", \
         key = \"/etc/uh-proxy/tls/example.com/privkey.pem\" }]\n";
    fs::write(dir.join("plain.toml"), [plain, app].concat()).unwrap();
    fs::write(dir.join("https.toml"), [plain, https, app].concat()).unwrap();
    certify(dir);
}

/// Makes a new certificate, which its clients trust by itself.
fn certify(dir: &Path) {
    let args = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=example.com \
         -addext subjectAltName=DNS:example.com -keyout privkey.pem -out fullchain.pem";
    let made = Command::new("openssl").args(args.split_whitespace()).current_dir(dir).output();
    let made = made.expect("openssl is missing: .ci/needs test");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// The machine's own address, so that nothing else accepts its connections.
fn address(machine: &Machine) -> String {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    docker(&["inspect", "--format", format, &machine.name]).text.trim().to_owned()
}

fn curl(ca: &Path, ip: &str, args: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", "20", "--cacert"]).arg(ca);
    for port in [80, 443] {
        command.arg("--resolve").arg(format!("{HOST}:{port}:{ip}"));
    }
    command.args(args);
    command
}

/// Clients that make a new connection for each request.
struct Clients {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(ca: &Path, ip: &str) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let requests: [&[&str]; 3] = [
            &["--http2", "https://example.com/"],
            &["--http1.1", "https://example.com/"],
            &["http://example.com/"],
        ];
        let client = |args: &'static [&'static str]| {
            let (ca, ip) = (ca.to_owned(), ip.to_owned());
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let ran = Ran::of(curl(&ca, &ip, args).output().unwrap());
                    assert!(ran.code == Some(0) && ran.text.contains("blue 1.0.0"), "{args:?}: {}", ran.text);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let threads = requests.map(client).into();
        Self { stop, answered, threads }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Each of them has got all its answers.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no request fails");
        }
        self.answered.load(Ordering::Relaxed)
    }
}

#[test]
fn under_the_shipped_units_a_restart_refuses_no_connection_on_either_port() {
    let test = "uh-proxy.socket with HTTPS";
    if !image_or_skip(test) {
        return;
    }
    let Some(machine) = Machine::boot_or_skip(test) else { return };
    let sh = |script: &str| machine.expect(&["sh", "-c", script]);
    prepare(machine.dir.path());
    sh(INSTALL);
    sh(ADD_HTTPS);
    let checked = machine.run(&["sh", "-c", CHECK]);
    assert_eq!(checked.code, Some(0), "{}", checked.text);
    checked.says("443");
    sh(ADD_SOCKET);
    let said = sh(CHECK);
    println!("{}", said.trim());
    assert!(!said.contains("isn't"), "{said}");

    let (ca, ip) = (machine.dir.path().join("ca.pem"), address(&machine));
    fs::copy(machine.dir.path().join("fullchain.pem"), &ca).unwrap();
    let clients = Clients::start(&ca, &ip);
    for _ in 0..RESTARTS {
        let before = clients.answered();
        sh("systemctl restart uh-proxy.service");
        until("clients are answered", || (clients.answered() > before + 3).then_some(()));
    }
    println!("{RESTARTS} restarts under systemd: {} requests on new connections, 0 failed", clients.end());

    // Either socket starts the service.
    for url in ["https://example.com/", "http://example.com/"] {
        sh("systemctl stop uh-proxy.service");
        let ran = Ran::of(curl(&ca, &ip, &[url]).output().unwrap());
        assert_eq!((ran.code, ran.text.trim()), (Some(0), "blue 1.0.0"), "{url}");
    }

    // A renewal, as certbot's hook does it.
    certify(machine.dir.path());
    let new = machine.dir.path().join("fullchain.pem");
    assert_ne!(Ran::of(curl(&new, &ip, &["https://example.com/"]).output().unwrap()).code, Some(0));
    sh(
        "install -g uh-proxy -m 640 /srv/uh/fullchain.pem /srv/uh/privkey.pem /etc/uh-proxy/tls/example.com && systemctl reload uh-proxy",
    );
    let ran = Ran::of(curl(&new, &ip, &["--include", "--http2", "https://example.com/"]).output().unwrap());
    assert!(ran.code == Some(0) && ran.text.starts_with("HTTP/2 200"), "{}", ran.text);
}
