//! A release: two services behind one uh-proxy are deployed together, rolled back together, and recovered together.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use uh_testkit::load::{Group, Plan, Reuse};
use uh_testkit::log::json_lines;
use uh_testkit::uh_deploy::{UhDeploy, instances};
use uh_testkit::uh_proxy::{Setup, UhProxy};

use crate::harness::{
    Load, QUICK, REQUEST_TIMEOUT, Ran, alive, block, end_instances, free_port, get, kill_instances, program,
    until,
};

/// The services, and where they are at uh-proxy.
pub(crate) const SERVICES: [(&str, &str); 2] = [("app", "/"), ("web", "/web/")];

/// One uh-proxy with two services, a configuration for each, and one for the release.
pub(crate) struct Shop {
    pub(crate) setup: Setup,
    pub(crate) proxy: UhProxy,
    pub(crate) members: [UhDeploy; 2],
    dir: TempDir,
}

impl Shop {
    pub(crate) fn open(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = |_| SocketAddr::from(([127, 0, 0, 1], free_port()));
        let ports: [[SocketAddr; 2]; 2] = [(); 2].map(|()| [(); 2].map(address));
        let [[blue, green], [web_blue, web_green]] = ports;
        let health = "interval = \"50ms\"\nhealthy_after = 1\n";
        let web = format!(
            "[services.app.health]\n{health}[services.web]\npath_prefix = \"/web\"\nstrip_prefix = true\nactive = \"green\"\n\
             [services.web.health]\n{health}[services.web.backends.blue]\nendpoints = [\"{web_blue}\"]\n\
             [services.web.backends.green]\nendpoints = [\"{web_green}\"]\n"
        );
        let setup = Setup::new(dir.path(), blue, green).active("green").server("threads = 1").service(&web);
        let proxy = block(setup.start()).unwrap();
        let mut services = SERVICES.iter();
        let members = ports.map(|ports| {
            let (service, _) = services.next().unwrap();
            let home = dir.path().join(service);
            fs::create_dir(&home).unwrap();
            let mut deploy = UhDeploy::new(&home, &setup.socket(), ports).unwrap();
            deploy.add(QUICK);
            deploy.add(&format!("[deploy]\nservice = \"{service}\""));
            deploy.configure("uh-deploy.toml", extra).unwrap();
            deploy
        });
        let release = "[release]\nstate_dir = \"release-state\"\nmembers = [\"app/uh-deploy.toml\", \"web/uh-deploy.toml\"]\n";
        fs::write(dir.path().join("release.toml"), release).unwrap();
        Self { setup, proxy, members, dir }
    }

    /// Deployed once on each backend.
    pub(crate) fn with_two_releases(extra: &str) -> Self {
        let shop = Self::open(extra);
        shop.deploy_twice();
        shop
    }

    pub(crate) fn deploy_twice(&self) {
        self.expect(0, &["blue-green", "--version", "0.0.1"]);
        self.expect(0, &["blue-green", "--version", "0.0.2"]);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `uh-deploy` for the release.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_of(&self.path("release.toml"), args)
    }

    fn command_of(&self, config: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program("uh-deploy"));
        command.arg("--config").arg(config).args(args).env_remove("npm_package_version").stdin(Stdio::null());
        command
    }

    /// Runs it, and requires an exit code.
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, args: &[&str]) -> Ran {
        let ran = Ran::of(self.command(args).output().unwrap());
        assert_eq!(ran.code, Some(code), "uh-deploy {args:?}:\n{}", ran.text);
        ran
    }

    /// `uh-deploy` for one member alone.
    pub(crate) fn run_of(&self, member: &str, args: &[&str]) -> Ran {
        let config = self.path(member).join("uh-deploy.toml");
        Ran::of(self.command_of(&config, args).output().unwrap())
    }

    /// The same, and requires an exit code.
    #[track_caller]
    pub(crate) fn expect_of(&self, member: &str, code: i32, args: &[&str]) -> Ran {
        let ran = self.run_of(member, args);
        assert_eq!(ran.code, Some(code), "uh-deploy of {member} {args:?}:\n{}", ran.text);
        ran
    }

    /// What clients get from each service: `blue 1.0.0`.
    pub(crate) fn served(&self) -> [String; 2] {
        SERVICES.map(|(_, path)| get(self.proxy.address, path).unwrap().trim().to_owned())
    }

    pub(crate) fn generation(&self) -> u64 {
        block(self.proxy.client.status()).unwrap().generation
    }

    /// The names of the instances that run.
    pub(crate) fn running(&self) -> Vec<String> {
        let of = |deploy: &UhDeploy| {
            let saved = instances(&deploy.state_dir()).into_iter();
            let names = saved.filter_map(|(dir, saved)| {
                alive(&saved["app"])?;
                Some(dir.file_name().unwrap().to_string_lossy().into_owned())
            });
            names.collect::<Vec<_>>()
        };
        self.members.iter().flat_map(of).collect()
    }

    pub(crate) fn history(&self, member: usize) -> Vec<Value> {
        json_lines(&self.members[member].state_dir().join("history.jsonl")).unwrap()
    }

    /// A member whose app dies as soon as its `post_switch` hook has run.
    pub(crate) fn dies_after_the_switch(&self) -> String {
        let die = self.path("die");
        let script = format!(
            "{} & app=$!; until [ -e {die:?} ]; do sleep 0.02; done; kill -9 $app; exit 9",
            program("uh-sample-app").display()
        );
        format!(
            "[runtime.process]\ncommand = [\"sh\", \"-c\", {script:?}]\n\
             [deploy]\nsettle = \"5s\"\nstop_timeout = \"300ms\"\n[hooks]\npost_switch = [\"touch\", {die:?}]"
        )
    }

    /// Load on both services.
    pub(crate) fn load(&self) -> Load {
        let group = |(_, path): (&str, &str)| Group {
            path: path.to_owned(),
            clients: 2,
            rate: 300.0,
            reuse: Reuse::KeepAlive,
        };
        let groups = SERVICES.map(group).to_vec();
        let plan = Plan { target: self.proxy.address, groups, request_timeout: REQUEST_TIMEOUT };
        let load = uh_testkit::load::Load::start(plan).unwrap();
        until("the load has begun", || (load.so_far().0 > 0).then_some(()));
        Load(load)
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        for member in &self.members {
            end_instances(&member.state_dir());
            kill_instances(&member.state_dir());
        }
        if std::thread::panicking() {
            println!("--- uh-proxy.log\n{}", fs::read_to_string(self.setup.log()).unwrap_or_default());
        }
    }
}

#[test]
fn a_release_moves_all_services_in_one_switch_and_a_rollback_moves_them_back() {
    let shop = Shop::with_two_releases("");
    assert_eq!(shop.served(), ["green 0.0.2"; 2]);
    let load = shop.load();
    let ran = shop.expect(0, &["blue-green", "--version", "1.0.0"]);
    ran.says("── app")
        .says("── web")
        .says("Release complete! app: blue (v1.0.0) serves; web: blue (v1.0.0) serves");
    assert_eq!(shop.served(), ["blue 1.0.0"; 2]);
    let lines = [shop.history(0), shop.history(1)].map(|lines| lines.last().unwrap().clone());
    assert_eq!(lines[0]["operation"], lines[1]["operation"]);
    assert_eq!((&lines[0]["outcome"], &lines[1]["outcome"]), (&"deployed".into(), &"deployed".into()));
    assert!(lines[0]["remarks"].to_string().contains("together with web"), "{}", lines[0]);
    let log = fs::read_to_string(shop.setup.log()).unwrap();
    assert!(log.contains("services=\"app: green → blue, web: green → blue\""), "{log}");
    let before = shop.generation();
    shop.expect(0, &["rollback"]).says("Rollback complete");
    assert_eq!(
        (shop.served(), shop.generation()),
        (["green 0.0.2".to_owned(), "green 0.0.2".to_owned()], before + 1)
    );
    shop.expect(1, &["rollback"]).says("nothing to roll back to");
    shop.expect(0, &["history", "--limit", "1"]).says("── web").says("rolled_back");
    shop.expect(0, &["recover"]).says("Nothing to recover");
    shop.expect(0, &["retire", "--now"]);
    assert_eq!(shop.running().len(), 2);
    load.must_be_unharmed();
}

#[test]
fn a_candidate_that_fails_leaves_all_services_as_they_were() {
    let shop = Shop::with_two_releases("");
    let before = shop.served();
    // It never answers its health checks.
    shop.members[1].configure("uh-deploy.toml", "[health]\nwithin = \"500ms\"\npath = \"/none\"").unwrap();
    let load = shop.load();
    let ran = shop.expect(1, &["blue-green", "--version", "1.0.0"]);
    ran.says("Release failed; nothing has changed for users: app: green (v0.0.2) serves; web: green (v0.0.2) serves");
    load.must_be_unharmed();
    assert_eq!(shop.served(), before);
    assert!(shop.running().iter().all(|name| name.contains(".green.")), "{:?}", shop.running());
    let reason = shop.history(0).last().unwrap()["reason"].clone();
    assert!(reason.as_str().unwrap().starts_with("web: "), "{reason}");
}

#[test]
fn a_candidate_that_dies_after_the_switch_moves_all_services_back() {
    let shop = Shop::with_two_releases("");
    let extra = shop.dies_after_the_switch();
    shop.members[1].configure("uh-deploy.toml", &extra).unwrap();
    let ran = shop.expect(3, &["blue-green", "--version", "1.0.0"]);
    ran.says("died after traffic was switched to it").says("traffic of all services was moved back");
    assert_eq!(shop.served(), ["green 0.0.2"; 2]);
    assert!(shop.running().iter().all(|name| name.contains(".green.")), "{:?}", shop.running());
    for member in 0..2 {
        assert_eq!(shop.history(member).last().unwrap()["outcome"], "returned");
    }
    let log = fs::read_to_string(shop.setup.log()).unwrap();
    assert!(log.contains("services=\"app: blue → green, web: blue → green\""), "one switch back: {log}");
}

#[test]
fn a_member_deployed_alone_since_makes_the_release_no_longer_the_last_change() {
    let shop = Shop::with_two_releases("");
    shop.expect_of("web", 0, &["blue-green", "--version", "0.0.3"]);
    shop.expect(1, &["rollback"]).says("the last changes of the members weren't one release");
    assert_eq!(shop.served(), ["green 0.0.2", "blue 0.0.3"]);
}

#[test]
fn a_first_release_happens_once_and_only_if_no_member_was_deployed_before() {
    let shop = Shop::open("");
    shop.expect(0, &["blue-green", "--first", "--version", "1.0.0"]).says("Release complete!");
    let (served, generation) = (shop.served(), shop.generation());
    assert_eq!(served, ["blue 1.0.0"; 2]);
    shop.expect(0, &["blue-green", "--first", "--version", "2.0.0"]).says("--first has nothing to do");
    assert_eq!((shop.served(), shop.generation(), shop.history(0).len()), (served, generation, 1));
    let other = Shop::open("");
    other.expect_of("web", 0, &["blue-green", "--version", "1.0.0"]);
    let ran = other.expect(1, &["blue-green", "--first", "--version", "2.0.0"]);
    ran.says("this isn't the first release: web was deployed before, app wasn't; nothing was changed");
    other.expect_of("app", 0, &["blue-green", "--first", "--version", "1.0.0"]);
    other.expect(0, &["blue-green", "--first", "--version", "2.0.0"]);
    assert_eq!(other.served(), ["blue 1.0.0"; 2]);
}

#[test]
fn a_release_returns_to_a_backend_that_holds_one_version_in_all_services() {
    let shop = Shop::with_two_releases("");
    shop.expect(1, &["rollback", "--to", "green"]).says("app: green is already active");
    shop.expect(0, &["rollback"]);
    assert_eq!(shop.served(), ["blue 0.0.1"; 2]);
    shop.expect(1, &["rollback", "--to", "green"]).says("app: green (v0.0.2) was rolled back before");
    let before = shop.generation();
    shop.expect(0, &["rollback", "--to", "green", "--again"]).says("Rollback complete");
    let green = "green 0.0.2".to_owned();
    assert_eq!((shop.served(), shop.generation()), ([green.clone(), green], before + 1), "one switch");
    // One member has another version there now.
    shop.expect_of("web", 0, &["blue-green", "--version", "0.0.3"]);
    shop.expect_of("web", 0, &["rollback"]);
    let ran = shop.expect(1, &["rollback", "--to", "blue", "--again"]);
    ran.says("the members don't hold one version there: app: blue holds v0.0.1, web: blue holds v0.0.3");
    assert_eq!(shop.served(), ["green 0.0.2"; 2]);
}

#[test]
fn a_release_that_cannot_be_carried_out_is_refused_with_the_reason() {
    let shop = Shop::open("");
    shop.expect(2, &["logs"]).says("pass the configuration of a member");
    shop.expect(0, &["blue-green", "--version", "1.0.0", "--dry-run"])
        .says("all services are switched in one step");
    assert!(!shop.path("release-state").exists(), "a dry run writes nothing");
    let write = |text: &str| fs::write(shop.path("release.toml"), text).unwrap();
    write("[release]\nmembers = [\"app/uh-deploy.toml\"]\n");
    shop.expect(2, &["validate"]).says("release.members").says("at least two");
    write("[release]\nmembers = [\"app/uh-deploy.toml\", \"app/uh-deploy.toml\"]\n");
    shop.expect(2, &["validate"]).says("another member is the service app");
    write(
        "[release]\nmembers = [\"app/uh-deploy.toml\", \"web/uh-deploy.toml\"]\n[deploy]\nservice = \"app\"\n",
    );
    shop.expect(2, &["validate"]).says("deploy");
}
