//! A real systemd, which runs as process 1 of a container: an app outlives the unit that deployed it, and the shipped units of
//! uh-proxy keep its sockets. Needs a Docker Engine, and Debian's packages to make the image from; without them the test says
//! so in a line.

mod sockets;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use uh_testkit::wait::until_blocking;

use crate::containers::{BASE, engine_or_skip, skip};
use crate::harness::{Ran, get, program, until};

/// Made once for an engine, and kept there like a base image.
const IMAGE: &str = "uh-test-systemd:bookworm";

const PACKAGES: &str = "apt-get update && apt-get install --yes --no-install-recommends systemd dbus";

/// An engine mounts the control groups read-only, and systemd has to make some below its own.
const BOOT: &str = "mount -o remount,rw /sys/fs/cgroup; exec /lib/systemd/systemd";

fn docker(args: &[&str]) -> Ran {
    Ran::of(Command::new("docker").args(args).output().unwrap())
}

fn image_or_skip(name: &str) -> bool {
    if !engine_or_skip(name) {
        return false;
    }
    let dir = tempfile::tempdir().unwrap();
    let text = format!("FROM {BASE}\nRUN {PACKAGES}\nCMD {BOOT}\n");
    fs::write(dir.path().join("Dockerfile"), text).unwrap();
    let built = docker(&["build", "--tag", IMAGE, dir.path().to_str().unwrap()]);
    built.code == Some(0) || skip(name, "no image with systemd can be made here")
}

/// A machine: systemd, and the programs in `/opt/uh`.
struct Machine {
    /// Its `/srv/uh`.
    dir: TempDir,
    name: String,
    /// Where its port 80 is published.
    address: SocketAddr,
}

/// systemd mounts what it needs, and makes control groups.
const RIGHTS: [&str; 8] = [
    "--cap-add=SYS_ADMIN",
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    "--cgroupns=private",
    "--tmpfs=/run",
    "--tmpfs=/run/lock",
    "--publish=127.0.0.1::80",
    "--detach",
];

impl Machine {
    fn boot_or_skip(test: &str) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("uh-systemd-").tempdir().unwrap();
        let programs = program("uh-deploy").parent().unwrap().display().to_string();
        let name = dir.path().file_name().unwrap().to_str().unwrap().replace('.', "");
        let volumes =
            [format!("--volume={}:/srv/uh", dir.path().display()), format!("--volume={programs}:/opt/uh:ro")];
        let mut args = vec!["run", "--name", &name, &volumes[0], &volumes[1]];
        args.extend(RIGHTS);
        args.push(IMAGE);
        let run = docker(&args);
        let mut machine = Self { dir, name, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        if run.code != Some(0) {
            skip(test, &format!("the engine can't run systemd: {}", run.text.trim()));
            return None;
        }
        let port = docker(&["port", &machine.name, "80"]).text;
        machine.address = port.lines().next().unwrap().parse().unwrap();
        if !machine.has_booted() {
            println!("{}", docker(&["logs", &machine.name]).text);
            skip(test, "systemd doesn't start in a container here");
            return None;
        }
        Some(machine)
    }

    /// With uh-proxy as a unit, and configured for `uh-deploy`.
    fn with_uh_proxy_or_skip(test: &str) -> Option<Self> {
        let machine = Self::boot_or_skip(test)?;
        Self::configure(machine.dir.path());
        let front = ["/opt/uh/uh-proxy", "run", "--config", "/srv/uh/uh-proxy.toml"];
        machine.expect(&[&["systemd-run", "--unit=front"][..], &front].concat());
        until("uh-proxy listens", || get(machine.address, "/").ok());
        Some(machine)
    }

    fn has_booted(&self) -> bool {
        let state = || self.run(&["systemctl", "is-system-running"]).text;
        // A container lacks some of a machine's devices.
        let booted = || matches!(state().trim(), "running" | "degraded").then_some(());
        until_blocking("systemd has booted", booted).is_ok()
    }

    fn configure(dir: &Path) {
        let proxy = "[server]\nlisten = [\"0.0.0.0:80\"]\nadmin_socket = \"/srv/uh/run/admin.sock\"\n\
             state_file = \"/srv/uh/state/state.json\"\n[services.app]\nactive = \"green\"\n\
             [services.app.backends.blue]\nendpoints = [\"127.0.0.1:3008\"]\n\
             [services.app.backends.green]\nendpoints = [\"127.0.0.1:3009\"]\n\
             [services.app.health]\ninterval = \"100ms\"\nhealthy_after = 1\n";
        let deploy = "[deploy]\nadmin_socket = \"/srv/uh/run/admin.sock\"\nstate_dir = \"/srv/uh/deploys\"\nsettle = \"50ms\"\n\
             [backends.blue]\nendpoints = [\"127.0.0.1:3008\"]\n[backends.green]\nendpoints = [\"127.0.0.1:3009\"]\n\
             [runtime.process]\ncommand = [\"/opt/uh/uh-sample-app\"]\n[health]\ninterval = \"50ms\"\nsuccesses = 1\n";
        fs::write(dir.join("uh-proxy.toml"), proxy).unwrap();
        fs::write(dir.join("uh-deploy.toml"), deploy).unwrap();
    }

    /// Runs a command in it.
    fn run(&self, args: &[&str]) -> Ran {
        docker(&[&["exec", &self.name][..], args].concat())
    }

    #[track_caller]
    fn expect(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.text);
        ran.text
    }

    /// Runs `uh-deploy` as a unit to its end, with what systemd then does to whatever is left in the unit.
    fn deploy_in_a_unit(&self, path: &str, args: &[&str]) {
        let path = format!("--setenv=PATH={path}");
        let unit = ["systemd-run", "--wait", "--collect", "--quiet", "--pipe", &path];
        let command = ["/opt/uh/uh-deploy", "--config", "/srv/uh/uh-deploy.toml"];
        self.expect(&[&unit[..], &command, args].concat());
    }

    /// The active scopes of apps.
    fn scopes(&self) -> Vec<String> {
        let listed = self.expect(&["systemctl", "list-units", "--plain", "--no-legend", "uh-app-*.scope"]);
        listed.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    }

    /// The app's process id and control groups.
    fn app(&self) -> Option<(String, String)> {
        let pids = self.run(&["sh", "-c", "grep -l ^uh-sample-app$ /proc/[0-9]*/comm"]).text;
        let pid = pids.lines().next()?.split('/').nth(2)?.to_owned();
        let groups = self.run(&["cat", &format!("/proc/{pid}/cgroup")]).text;
        Some((pid, groups))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- journal\n{}", self.run(&["journalctl", "--no-pager", "--lines=40"]).text);
        }
        // What it made in the directory is root's, as this test is where it may use the engine.
        self.run(&["sh", "-c", "rm -rf /srv/uh/deploys /srv/uh/state /srv/uh/run"]);
        docker(&["rm", "--force", "--volumes", &self.name]);
    }
}

const PATH: &str = "/usr/bin:/bin";

#[test]
fn an_app_outlives_the_unit_that_deployed_it_in_a_scope_of_its_own() {
    let test = "apps under systemd";
    if !image_or_skip(test) {
        return;
    }
    let Some(machine) = Machine::with_uh_proxy_or_skip(test) else { return };
    machine.deploy_in_a_unit(PATH, &["blue-green", "--version", "1.0.0"]);
    assert_eq!(get(machine.address, "/").unwrap().trim(), "blue 1.0.0");
    let scopes = machine.scopes();
    assert_eq!(scopes.len(), 1, "{scopes:?}");
    let (pid, groups) = machine.app().unwrap();
    assert!(groups.contains(&format!("/{}", scopes[0])), "{groups}");

    // The supervisor is there too: it starts an app that was killed again, in the same scope.
    machine.expect(&["sh", "-c", &format!("kill -KILL {pid}")]);
    let groups = until("the app is started again", || {
        machine.app().filter(|(other, _)| *other != pid).map(|(_, groups)| groups)
    });
    assert!(groups.contains(&format!("/{}", scopes[0])), "{groups}");

    machine.deploy_in_a_unit(PATH, &["blue-green", "--version", "1.0.1"]);
    assert_eq!(get(machine.address, "/").unwrap().trim(), "green 1.0.1");
    assert_eq!(machine.scopes().len(), 2, "the old one is kept warm");
    machine.deploy_in_a_unit(PATH, &["retire", "--now"]);
    until("the scope of what was stopped is gone", || (machine.scopes().len() == 1).then_some(()));
    assert!(machine.scopes()[0].contains(".green."), "{:?}", machine.scopes());
}

/// What the scope is for: without one, systemd ends the app with the unit.
#[test]
fn without_systemd_run_an_app_ends_with_the_unit_that_deployed_it() {
    let test = "apps under systemd, without a scope";
    if !image_or_skip(test) {
        return;
    }
    let Some(machine) = Machine::with_uh_proxy_or_skip(test) else { return };
    machine.deploy_in_a_unit("/nowhere", &["blue-green", "--version", "1.0.0"]);
    assert!(machine.scopes().is_empty());
    until("systemd has ended the app", || machine.app().is_none().then_some(()));
}
