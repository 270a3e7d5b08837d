//! `validate` with a real PostgreSQL, up and down, and with other problems.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::harness::{Stage, free_port, until};

/// The user for PostgreSQL (nobody) if the test runs as root, as which PostgreSQL refuses to run.
const UNPRIVILEGED: u32 = 65534;

struct Postgres {
    dir: PathBuf,
    port: u16,
    server: Option<Child>,
}

/// Finds a program of PostgreSQL, which Debian keeps out of PATH.
fn postgres_program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let in_path = std::env::split_paths(&path).map(|dir| dir.join(name));
    let of_debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found = in_path.chain(of_debian.map(|version| version.path().join("bin").join(name)));
    found.find(|path| path.is_file()).unwrap_or_else(|| panic!("{name} is missing: .ci/needs test"))
}

fn unprivileged(program: &str) -> Command {
    let mut command = Command::new(postgres_program(program));
    if rustix::process::getuid().is_root() {
        command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).env_remove("PGDATA");
    command
}

/// A test certificate authority, and a certificate for `db.test`.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        authority.openssl(
            "req -x509 -newkey rsa:2048 -nodes -subj /CN=authority -keyout ca.key -out ca.crt -days 2",
        );
        authority.openssl("req -newkey rsa:2048 -nodes -subj /CN=db.test -keyout server.key -out server.csr");
        fs::write(authority.path("ext"), "subjectAltName=DNS:db.test\nbasicConstraints=CA:FALSE\n").unwrap();
        authority.openssl(
            "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.crt",
        );
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, arguments: &str) {
        let made = Command::new("openssl").args(arguments.split(' ')).current_dir(self.0.path()).output();
        let made = made.expect("openssl is missing: .ci/needs test");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

impl Postgres {
    fn start() -> Self {
        Self::start_with(None)
    }

    /// With an authority, the server offers TLS.
    fn start_with(authority: Option<&Authority>) -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let dir = std::env::temp_dir().join(format!("uh-deploy-postgres-{}-{number}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        if rustix::process::getuid().is_root() {
            std::os::unix::fs::chown(&dir, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
        }
        let mut postgres = Self { port: free_port(), server: None, dir };
        let init = unprivileged("initdb")
            .args(["--auth=trust", "--username=app", "--no-sync", "--pgdata"])
            .arg(&postgres.dir)
            .current_dir("/")
            .status();
        assert!(init.unwrap().success(), "initdb failed");
        let mut command = unprivileged("postgres");
        command.arg("-D").arg(&postgres.dir).arg("-k").arg(&postgres.dir);
        command.args(["-h", "127.0.0.1", "-F", "-p"]).arg(postgres.port.to_string()).current_dir("/");
        if let Some(authority) = authority {
            for name in ["server.crt", "server.key"] {
                let to = postgres.dir.join(name);
                fs::copy(authority.path(name), &to).unwrap();
                fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
                if rustix::process::getuid().is_root() {
                    std::os::unix::fs::chown(&to, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
                }
            }
            command.args(["-c", "ssl=on"]);
        }
        postgres.server = Some(command.spawn().unwrap());
        until("PostgreSQL listens", || std::net::TcpStream::connect(("127.0.0.1", postgres.port)).ok());
        postgres
    }

    fn url(&self) -> String {
        format!("postgres://app:pass-w0rd@127.0.0.1:{}/postgres", self.port)
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let pid = rustix::process::Pid::from_child(&server);
            // SIGINT is PostgreSQL's fast shutdown, which also cleans up children and shared memory.
            rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
            until("PostgreSQL has ended", || server.try_wait().unwrap());
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn configure(stage: &Stage, url: Option<&str>) {
    let file = stage.path(".env");
    fs::write(&file, url.map(|url| format!("DATABASE_URL={url}\n")).unwrap_or_default()).unwrap();
    let proxy = stage.path("uh-proxy.toml");
    let program = crate::harness::program("uh-proxy");
    let extra = format!(
        "[runtime.process]\nenv_file = {file:?}\n[validate]\nrequired_env = [\"DATABASE_URL\"]\ndatabase_url_env = \"DATABASE_URL\"\n\
         [deploy.proxy]\nconfig = {proxy:?}\nprogram = {program:?}",
    );
    stage.configure("uh-deploy.toml", &extra);
}

#[test]
fn validate_queries_a_real_database_and_reports_each_failure_with_its_remedy() {
    let stage = Stage::new();
    let mut postgres = Postgres::start();
    configure(&stage, Some(&postgres.url()));
    // It may still be starting up, which fails the check too.
    until("PostgreSQL answers", || (stage.run(&["validate"]).code == Some(0)).then_some(()));
    let good = stage.expect(0, &["validate"]);
    for name in [
        "✓ Program found: ",
        "✓ uh-proxy configuration valid: ",
        "✓ uh-proxy answers: uh-proxy ",
        "✓ Environment variables set: 1 required",
        "✓ Database connection OK: PostgreSQL ",
        "✓ Disk space sufficient (>1MiB): ",
        "✓ Memory available (>1MiB): ",
        "✓ Port of blue available: ",
        "✓ Clock plausible: ",
    ] {
        good.says(name);
    }
    postgres.stop();
    let down = stage.expect(1, &["validate"]);
    down.says("✗ Database connection OK: ").says("→ make sure that the database runs").says("❌ 1 of ");
    assert!(!down.text.contains("pass-w0rd"), "{}", down.text);
    let json = stage.expect(1, &["--json", "validate"]);
    let json: serde_json::Value = serde_json::from_str(&json.text).unwrap();
    assert_eq!(json["passed"], false);
}

#[test]
fn validate_finds_other_problems() {
    let stage = Stage::new();
    configure(&stage, None);
    let _taken = std::net::TcpListener::bind(("127.0.0.1", stage.ports[0])).unwrap();
    let broken =
        fs::read_to_string(stage.path("uh-proxy.toml")).unwrap().replace("threads = 1", "threads = -1");
    fs::write(stage.path("uh-proxy.toml"), broken).unwrap();
    let ran = stage.expect(1, &["validate"]);
    ran.says("✗ Environment variables set: missing or empty: DATABASE_URL");
    ran.says("✗ Database connection OK: DATABASE_URL isn't set");
    ran.says("✗ Port of blue available: ").says(&format!("(pid {})", std::process::id()));
    ran.says("✗ uh-proxy configuration valid: ").says("server.threads");
    assert!(!Path::new(&stage.path("deploy-state")).exists(), "validate changes nothing");
}

#[test]
fn validate_uses_tls_according_to_sslmode() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let stage = Stage::new();
    let postgres = Postgres::start_with(Some(&authority));
    let (ca, other) = (authority.path("ca.crt"), stranger.path("ca.crt"));
    let (ca, other) = (ca.display(), other.display());
    let url = postgres.url();
    let named = format!("host=db.test hostaddr=127.0.0.1 port={} user=app dbname=postgres", postgres.port);
    configure(&stage, Some(&format!("{url}?sslmode=disable")));
    until("PostgreSQL answers", || (stage.run(&["validate"]).code == Some(0)).then_some(()));
    let (plain, tls) = (Ok(false), Ok(true));
    for (url, expected) in [
        (format!("{url}?sslmode=disable&pgbouncer=true"), plain),
        (url.clone(), tls),
        (format!("{url}?sslmode=require"), tls),
        (format!("{url}?sslmode=verify-ca&sslrootcert={ca}"), tls),
        (format!("{url}?sslmode=verify-ca&sslrootcert={other}"), Err("invalid peer certificate")),
        (format!("{url}?sslmode=verify-ca"), Err("invalid peer certificate")),
        (
            format!("{url}?sslmode=verify-full&sslrootcert={ca}"),
            Err("invalid peer certificate: certificate not valid for name"),
        ),
        (format!("{named} sslmode=verify-full sslrootcert={ca}"), tls),
        (format!("{named} sslmode=verify-full sslrootcert={other}"), Err("invalid peer certificate")),
        (format!("{url}?sslmode=verify-full&sslrootcert=/nowhere.crt"), Err("can't read /nowhere.crt")),
        (format!("{url}?sslmode=always"), Err("sslmode always isn't one of")),
    ] {
        configure(&stage, Some(&url));
        match expected {
            Ok(over_tls) => {
                let ran = stage.expect(0, &["validate"]);
                ran.says("✓ Database connection OK: PostgreSQL ");
                assert_eq!(ran.text.contains(", over TLS"), over_tls, "{url}: {}", ran.text);
            }
            Err(reason) => {
                stage.expect(1, &["validate"]).says("✗ Database connection OK: ").says(reason);
            }
        }
    }
}

#[test]
fn a_database_without_required_tls_fails_the_check() {
    let stage = Stage::new();
    let postgres = Postgres::start();
    configure(&stage, Some(&postgres.url()));
    until("PostgreSQL answers", || (stage.run(&["validate"]).code == Some(0)).then_some(()));
    configure(&stage, Some(&format!("{}?sslmode=require", postgres.url())));
    stage.expect(1, &["validate"]).says("✗ Database connection OK: ").says("TLS");
}

#[test]
fn an_empty_list_of_required_variables_is_reported_as_unchecked() {
    let stage = Stage::new();
    let ran = stage.run(&["validate"]);
    ran.says("Environment variables set: none checked");
    assert!(!ran.text.contains("0 required"), "{}", ran.text);
}
