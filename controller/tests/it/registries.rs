//! Images from a private registry: credentials, and what `validate` says beforehand. Needs a Docker Engine and Debian's
//! `docker-registry`; without them, each test says so in a line.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::container_deploys::{Harbour, Kind};
use crate::containers::{BASE, engine_or_skip, remove_images, skip};
use crate::harness::{Ran, free_port, until};

const USER: &str = "deployer";
const PASSWORD: &str = "uh-secret-7";

/// The password's hash, as `htpasswd -B` makes it.
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuu3Wx/FrB3Yaq6WNjPqCr8MAI/q/APZQ6";

fn registry_or_skip(name: &str) -> bool {
    let found = Command::new("docker-registry").arg("--version").output();
    engine_or_skip(name)
        && (found.is_ok_and(|output| output.status.success()) || skip(name, "there is no docker-registry"))
}

/// A registry on this machine that wants a password. Engines need no TLS for one on 127.0.0.1.
struct Registry {
    dir: TempDir,
    process: Child,
    port: u16,
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("uh-registry-").tempdir().unwrap();
        let port = free_port();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("htpasswd"), format!("{USER}:{HASH}\n")).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {:?}}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\nauth: {{htpasswd: {{realm: test, path: {:?}}}}}\n",
            path("images"),
            path("htpasswd"),
        );
        fs::write(path("config.yml"), config).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(path("config.yml")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().unwrap();
        let registry = Self { dir, process, port };
        until("the registry listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        fs::create_dir(registry.path("empty")).unwrap();
        registry.login("login", PASSWORD);
        registry
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn image(&self, version: &str) -> String {
        format!("{}/team/app:{version}", self.host())
    }

    /// A Docker configuration with a login, as `docker login` leaves it.
    fn login(&self, name: &str, password: &str) {
        let auth = STANDARD.encode(format!("{USER}:{password}"));
        self.docker_config(name, &serde_json::json!({"auths": {(self.host()): {"auth": auth}}}));
    }

    fn docker_config(&self, name: &str, config: &serde_json::Value) {
        fs::create_dir(self.path(name)).unwrap();
        fs::write(self.path(name).join("config.json"), config.to_string()).unwrap();
    }

    /// A credential helper `docker-credential-NAME` in a directory of its own.
    fn helper(&self, name: &str, script: &str) {
        let _ = fs::create_dir(self.path("bin"));
        let path = self.path("bin").join(format!("docker-credential-{name}"));
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Makes an image, puts it into the registry, and takes it from the engine.
    fn publish(&self, version: &str) {
        let app = self.path("app");
        let _ = fs::create_dir(&app);
        fs::write(app.join("app.pl"), crate::containers::APP).unwrap();
        let text =
            format!("FROM {BASE}\nCOPY app.pl /app.pl\nENV CONTENT={version}\nCMD [\"perl\", \"/app.pl\"]\n");
        fs::write(app.join("Dockerfile"), text).unwrap();
        let image = self.image(version);
        for args in
            [&["build", "--tag", &image, app.to_str().unwrap()][..], &["push", &image], &["rmi", &image]]
        {
            let mut command = Command::new("docker");
            command.args(args).env("DOCKER_CONFIG", self.path("login"));
            let output = command.output().unwrap();
            assert!(output.status.success(), "docker {args:?}: {}", Ran::of(output).text);
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            println!("--- the registry's log\n{}", fs::read_to_string(self.path("log")).unwrap_or_default());
        }
    }
}

/// An app whose images come from a registry.
struct Pulled {
    harbour: Harbour,
    registry: Registry,
}

impl Pulled {
    fn new() -> Self {
        let pulled = Self { harbour: Harbour::new(Kind::Docker, None), registry: Registry::start() };
        pulled.take(&pulled.registry.image("{version}"));
        pulled
    }

    /// Takes this image from now on.
    fn take(&self, image: &str) {
        self.harbour.configure(&format!("[runtime.docker]\nimage = {image:?}\n"));
        let path = self.harbour.stage.path("uh-deploy.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, text.replace("context = \".\"\n", "")).unwrap();
    }

    /// `uh-deploy` of a user with this Docker configuration. Its output must not contain any secret.
    #[track_caller]
    fn expect(&self, code: i32, config: &str, args: &[&str]) -> Ran {
        let mut command = self.harbour.command(args);
        command.env("DOCKER_CONFIG", self.registry.path(config));
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.registry.path("bin").display()));
        let ran = Ran::of(command.output().unwrap());
        assert_eq!(ran.code, Some(code), "{config}: uh-deploy {args:?}:\n{}", ran.text);
        for secret in [PASSWORD, WRONG] {
            assert!(!ran.text.contains(secret), "{secret} is in:\n{}", ran.text);
        }
        ran
    }
}

impl Drop for Pulled {
    fn drop(&mut self) {
        let repository = format!("{}/team/app", self.registry.host());
        let containers = self.harbour.running();
        for name in containers {
            self.harbour.docker(&["rm", "--force", &name]);
        }
        remove_images(&repository, |args| self.harbour.docker(args));
    }
}

const WRONG: &str = "uh-wrong-password";

#[test]
fn an_image_is_pulled_with_the_users_login_and_not_without() {
    if !registry_or_skip("pulls from a private registry") {
        return;
    }
    let pulled = Pulled::new();
    let deploy = ["blue-green", "--version", "1.0.0"];
    pulled.registry.publish("1.0.0");
    pulled.registry.login("wrong", WRONG);
    for config in ["empty", "wrong"] {
        let image = pulled.registry.image("1.0.0");
        pulled.expect(1, config, &deploy).says(&format!("can't pull {image}")).says("nothing has changed");
    }
    pulled.expect(0, "login", &deploy);
    assert_eq!(pulled.harbour.stage.served(), "blue 1.0.0");
    // A version that was never published.
    pulled
        .expect(1, "login", &["blue-green", "--version", "9.9.9"])
        .says("can't pull")
        .says("blue (v1.0.0) serves");
}

#[test]
fn an_image_is_pulled_with_what_a_credential_helper_answers() {
    if !registry_or_skip("pulls with a credential helper") {
        return;
    }
    let pulled = Pulled::new();
    let registry = &pulled.registry;
    let asked = registry.path("asked");
    let answer = serde_json::json!({"ServerURL": registry.host(), "Username": USER, "Secret": PASSWORD});
    let script = format!("echo \"$1 $(cat)\" >> {}; echo '{answer}'", asked.display());
    registry.helper("uhtest", &script);
    registry.helper("uhbroken", "echo 'the vault is sealed' >&2; exit 1");
    registry.helper("uhnone", "echo 'credentials not found in native keychain'; exit 1");
    let one = |helper: &str| serde_json::json!({"credHelpers": {(registry.host()): helper}});
    registry.docker_config("helper", &one("uhtest"));
    registry.docker_config("broken", &one("uhbroken"));
    registry.docker_config("none", &one("uhnone"));
    registry.docker_config("store", &serde_json::json!({"credsStore": "uhtest"}));
    for (version, config) in [("1.0.0", "helper"), ("1.0.1", "store")] {
        registry.publish(version);
        pulled.expect(0, config, &["blue-green", "--version", version]);
        assert_eq!(pulled.harbour.stage.served().split(' ').next_back(), Some(version));
    }
    assert_eq!(fs::read_to_string(asked).unwrap(), format!("get {0}\nget {0}\n", registry.host()));
    registry.publish("1.0.2");
    let deploy = ["blue-green", "--version", "1.0.2"];
    pulled
        .expect(1, "broken", &deploy)
        .says(&format!("no credentials for {}", registry.host()))
        .says("the vault is sealed")
        .says("trying without credentials")
        .says("can't pull");
    pulled.expect(1, "none", &deploy).says("can't pull");
    assert_eq!(pulled.harbour.stage.served(), "green 1.0.1");
}

#[test]
fn validate_asks_the_registry_whether_the_image_can_be_pulled() {
    if !registry_or_skip("validate with a private registry") {
        return;
    }
    let pulled = Pulled::new();
    let image = pulled.registry.image("stable");
    pulled.registry.publish("stable");
    pulled.registry.login("wrong", WRONG);
    pulled.take(&image);
    let found =
        format!("✓ Image available: {image} isn't on this host and will be pulled; its registry has it");
    pulled.expect(0, "login", &["validate"]).says(&found);
    let missing = format!("✗ Image available: {image} isn't on this host and can't be pulled: ");
    for config in ["empty", "wrong"] {
        pulled.expect(1, config, &["validate"]).says(&missing).says("run docker login as this user");
    }
    for image in [pulled.registry.image("9.9.9"), format!("127.0.0.1:{}/team/app:1", free_port())] {
        pulled.take(&image);
        pulled
            .expect(1, "login", &["validate"])
            .says(&format!("✗ Image available: {image} isn't on this host and can't be pulled: "));
    }
    // Which version that will be isn't known yet.
    pulled.take(&pulled.registry.image("{version}"));
    pulled.expect(0, "empty", &["validate"]).says("✓ Image available: not checked: ");
    // It is here once it was deployed.
    pulled.take(&image);
    pulled.expect(0, "login", &["blue-green", "--version", "1.0.0"]);
    pulled.expect(0, "empty", &["validate"]).says(&format!("✓ Image available: {image} (sha256:"));
}
