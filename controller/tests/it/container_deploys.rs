//! Whole deploys of containers, under load, with a real Docker Engine. Without one, each test prints that it is
//! skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::containers::{APP, BASE, compose_or_skip, engine_or_skip, remove_images, skip};
use crate::harness::{Ran, Stage, get, until};

/// A stage whose app is a container.
pub(crate) struct Harbour {
    pub(crate) stage: Stage,
    kind: Kind,
    /// The engine, if it isn't the default one.
    host: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Docker,
    Compose,
}

impl Harbour {
    pub(crate) fn new(kind: Kind, host: Option<String>) -> Self {
        let harbour = Self { stage: Stage::new(), kind, host };
        fs::write(harbour.stage.path("app.pl"), APP).unwrap();
        harbour.dockerfile("CMD [\"perl\", \"/app.pl\"]");
        harbour.compose_file("");
        harbour.configure("");
        harbour
    }

    pub(crate) fn dockerfile(&self, end: &str) {
        let text = format!("FROM {BASE}\nCOPY app.pl /app.pl\n{end}\n");
        fs::write(self.stage.path("Dockerfile"), text).unwrap();
    }

    /// Compose services blue and green, with an additional environment line.
    fn compose_file(&self, extra: &str) {
        let mut text = "version: '3.8'\nservices:\n".to_owned();
        for (backend, port) in ["blue", "green"].into_iter().zip(self.stage.ports) {
            text += &format!(
                "  {backend}:\n    build: .\n    ports: ['127.0.0.1:{port}:3000']\n    environment:\n      \
                 PORT: '3000'\n      DEPLOYMENT_ENV: {backend}\n      APP_VERSION: ${{APP_VERSION}}\n{extra}"
            );
        }
        fs::write(self.stage.path("docker-compose.yml"), text).unwrap();
    }

    /// The name of the images or the compose project created here.
    pub(crate) fn name(&self) -> String {
        format!("uh-test-{}", self.stage.ports[0])
    }

    pub(crate) fn configure(&self, extra: &str) {
        let name = self.name();
        let runtime = match self.kind {
            Kind::Docker => {
                format!(
                    "kind = \"docker\"\n[runtime.docker]\ncontext = \".\"\nimage = \"{name}:{{version}}\""
                )
            }
            Kind::Compose => format!("kind = \"compose\"\n[runtime.compose]\nproject = {name:?}"),
        };
        let base = format!("[runtime]\n{runtime}\n[health]\nwithin = \"60s\"\n{extra}");
        self.stage.configure("uh-deploy.toml", &base);
        // The base configuration is for processes, which the container runtime rejects.
        let path = self.stage.path("uh-deploy.toml");
        let text = fs::read_to_string(&path).unwrap();
        let kept = text.split("[runtime.process]").collect::<Vec<_>>();
        let after = kept[1].split_once("\n[").map_or("", |(_, rest)| rest);
        fs::write(path, format!("{}[{after}", kept[0])).unwrap();
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.stage.command(args);
        command.envs(self.host.iter().map(|host| ("DOCKER_HOST", host)));
        command
    }

    #[track_caller]
    pub(crate) fn expect(&self, code: i32, args: &[&str]) -> Ran {
        let ran = Ran::of(self.command(args).output().unwrap());
        assert_eq!(ran.code, Some(code), "uh-deploy {args:?}:\n{}", ran.text);
        ran
    }

    pub(crate) fn deploy(&self, version: &str) -> Ran {
        self.expect(0, &["blue-green", "--version", version])
    }

    pub(crate) fn docker(&self, args: &[&str]) -> String {
        let mut command = Command::new("docker");
        command.args(args).envs(self.host.iter().map(|host| ("DOCKER_HOST", host)));
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    }

    /// The names of the running containers.
    pub(crate) fn running(&self) -> Vec<String> {
        let label = format!("label=uh-deploy.state-dir={}", self.stage.path("deploy-state").display());
        let listed = self.docker(&["ps", "--filter", &label, "--format", "{{.Names}}"]);
        listed.lines().map(str::to_owned).collect()
    }
}

impl Drop for Harbour {
    fn drop(&mut self) {
        let label = format!("label=uh-deploy.state-dir={}", self.stage.path("deploy-state").display());
        for id in self.docker(&["ps", "-aq", "--filter", &label]).lines() {
            self.docker(&["rm", "-f", id]);
        }
        let name = self.name();
        for repository in [name.clone(), format!("uh-deploy/{name}-blue"), format!("uh-deploy/{name}-green")]
        {
            remove_images(&repository, |args| self.docker(args));
        }
        self.docker(&["network", "rm", &format!("{name}_default")]);
    }
}

#[test]
fn containers_are_deployed_and_rolled_back_under_load() {
    if !engine_or_skip("deploys of containers") {
        return;
    }
    deployed_and_rolled_back_under_load(&Harbour::new(Kind::Docker, None));
}

#[test]
fn the_users_compose_files_are_deployed_and_rolled_back_under_load() {
    if !compose_or_skip("deploys by compose files") {
        return;
    }
    let harbour = Harbour::new(Kind::Compose, None);
    let before = fs::read(harbour.stage.path("docker-compose.yml")).unwrap();
    deployed_and_rolled_back_under_load(&harbour);
    assert_eq!(
        fs::read(harbour.stage.path("docker-compose.yml")).unwrap(),
        before,
        "the files are the user's"
    );

    let load = harbour.stage.load();
    // A compose file doesn't say which values are secret: all are, unless they are declared plain.
    harbour.configure("[secrets]\nplain = [\"FAIL\"]\n");
    harbour.compose_file("      FAIL: no database\n");
    harbour
        .expect(1, &["blue-green", "--version", "1.0.2"])
        .says("exit code 7")
        .says("cannot start: no database")
        .says("nothing has changed for users: green (v1.0.1) serves");
    // The bad version ran as blue, so 1.0.0 is started from what was frozen, whatever the file says now.
    harbour.expect(0, &["rollback", "--to", "blue", "--again"]).says("starting it again from its record");
    assert_eq!(harbour.stage.served(), "blue 1.0.0");
    load.must_be_unharmed();
}

fn deployed_and_rolled_back_under_load(harbour: &Harbour) {
    harbour.deploy("1.0.0");
    let load = harbour.stage.load();
    harbour.deploy("1.0.1");
    assert_eq!(harbour.stage.served(), "green 1.0.1");
    assert_eq!(harbour.running().len(), 2, "the old one is kept warm");
    harbour.expect(0, &["rollback"]);
    assert_eq!(harbour.stage.served(), "blue 1.0.0");
    // Removed, and started again from what was frozen: the same image, although its tag has moved.
    let green = harbour.running().into_iter().find(|name| name.contains("green")).unwrap();
    harbour.docker(&["rm", "-f", &green]);
    harbour.expect(0, &["rollback", "--to", "green", "--again"]);
    assert_eq!(harbour.stage.served(), "green 1.0.1");
    load.must_be_unharmed();
    harbour.expect(0, &["logs", "--backend", "green"]).says("listening as green 1.0.1");
}

/// The static files that uh-proxy serves.
#[test]
fn files_are_copied_out_of_the_image() {
    if !compose_or_skip("files of containers") {
        return;
    }
    for kind in [Kind::Docker, Kind::Compose] {
        let harbour = Harbour::new(kind, None);
        let from = |path: &str| format!("[files]\nfrom = {path:?}\nto = \"srv/app-{{backend}}/public\"\n");
        harbour.dockerfile("COPY public /app/public\nCMD [\"perl\", \"/app.pl\"]");
        harbour.configure(&from("/app/public"));
        let served = |backend: &str| {
            let name = format!("srv/app-{backend}/public/sub/version.txt");
            fs::read_to_string(harbour.stage.path(&name)).ok()
        };
        for (version, backend) in [("1.0.0", "blue"), ("1.0.1", "green")] {
            fs::create_dir_all(harbour.stage.path("public/sub")).unwrap();
            fs::write(harbour.stage.path("public/sub/version.txt"), version).unwrap();
            harbour.deploy(version);
            assert_eq!(served(backend).as_deref(), Some(version), "{kind:?}");
        }
        harbour.expect(0, &["retire", "--now"]);
        assert_eq!((served("blue"), served("green").as_deref()), (None, Some("1.0.1")), "{kind:?}");
        harbour.expect(0, &["rollback"]);
        assert_eq!(served("blue").as_deref(), Some("1.0.0"), "{kind:?}: from the old image");
        harbour.configure(&from("/app/nothing"));
        harbour.expect(1, &["blue-green", "--version", "1.0.2"]).says("/app/nothing");
        assert_eq!(served("blue").as_deref(), Some("1.0.0"), "{kind:?}: what serves keeps its files");
        let left =
            harbour.docker(&["ps", "-a", "--filter", "name=uh-deploy-files", "--format", "{{.Names}}"]);
        assert_eq!(left, "", "{kind:?}");
    }
}

/// The copy uses a container that is never started.
#[cfg(feature = "fault-points")]
#[test]
fn a_kill_while_files_are_copied_out_of_the_image_leaves_no_container() {
    use std::os::unix::process::ExitStatusExt as _;

    if !engine_or_skip("files of killed deploys") {
        return;
    }
    let harbour = Harbour::new(Kind::Docker, None);
    harbour.dockerfile("COPY public /app/public\nCMD [\"perl\", \"/app.pl\"]");
    harbour.configure("[files]\nfrom = \"/app/public\"\nto = \"srv/app-{backend}/public\"\n");
    fs::create_dir_all(harbour.stage.path("public")).unwrap();
    fs::write(harbour.stage.path("public/version.txt"), "1").unwrap();
    harbour.deploy("1.0.0");
    let fault = harbour.stage.path("fault");
    fs::write(&fault, "files.created").unwrap();
    let mut deploy = harbour.stage.command(&["blue-green", "--version", "1.0.1"]);
    let output = deploy.env("UH_DEPLOY_FAULT_FILE", &fault).output().unwrap();
    assert_eq!(output.status.signal(), Some(9), "{output:?}");
    let left = || harbour.docker(&["ps", "-a", "--filter", "name=uh-deploy-files", "--format", "{{.Names}}"]);
    assert_ne!(left(), "", "the test needs something to clean up");
    harbour.expect(0, &["recover"]).says("Undone");
    assert_eq!((left(), harbour.stage.served().as_str()), (String::new(), "blue 1.0.0"));
    assert!(!harbour.stage.path("srv/app-green").read_dir().is_ok_and(|mut left| left.next().is_some()));
}

#[test]
fn bad_containers_change_nothing_and_are_diagnosed() {
    if !engine_or_skip("deploys of bad containers") {
        return;
    }
    let harbour = Harbour::new(Kind::Docker, None);
    harbour.deploy("1.0.0");
    let load = harbour.stage.load();
    let limits = "[runtime.docker]\nmemory_limit = \"24MiB\"\nenv = { EAT = \"1\" }\n";
    harbour.configure(limits);
    harbour.expect(1, &["blue-green", "--version", "1.0.1"]).says("killed for using too much memory");
    harbour.configure("[runtime.docker]\nenv = { FAIL = \"no database\" }\n");
    harbour
        .expect(1, &["blue-green", "--version", "1.0.1"])
        .says("exit code 7")
        .says("cannot start: no database");
    harbour.configure("");
    harbour.dockerfile("RUN echo the compiler says no; exit 3");
    harbour
        .expect(1, &["blue-green", "--version", "1.0.1"])
        .says("the compiler says no")
        .says("nothing has changed for users");
    harbour.dockerfile("CMD [\"perl\", \"/app.pl\"]");
    let taken = std::net::TcpListener::bind(("127.0.0.1", harbour.stage.ports[1])).unwrap();
    harbour.expect(1, &["blue-green", "--version", "1.0.1"]).says("is in use by");
    drop(taken);
    assert_eq!(harbour.stage.served(), "blue 1.0.0");
    assert_eq!(harbour.running().len(), 1, "every candidate is gone");
    load.must_be_unharmed();
}

/// A separate engine that the test can restart.
struct OwnEngine {
    dir: TempDir,
    /// Whether its containers survive a restart.
    live_restore: bool,
    daemon: Option<Child>,
    bridge: String,
}

impl OwnEngine {
    fn new(live_restore: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("uh-engine-").tempdir().unwrap();
        // Its own bridge: otherwise it would remove the default engine's.
        let bridge = format!("uh-{}-{}", u8::from(live_restore), std::process::id());
        let mut engine = Self { dir, live_restore, daemon: None, bridge };
        ip(&["link", "add", &engine.bridge, "type", "bridge"]);
        let address = format!("10.213.{}.1/24", 77 + u8::from(live_restore));
        ip(&["address", "add", &address, "dev", &engine.bridge]);
        ip(&["link", "set", &engine.bridge, "up"]);
        engine.start();
        let moved = Command::new("sh")
            .arg("-c")
            .arg(format!("docker save {BASE} | DOCKER_HOST={} docker load", engine.host()))
            .output()
            .unwrap();
        assert!(moved.status.success(), "{moved:?}");
        engine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn host(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.path("dockerd.log")).unwrap();
        let mut command = Command::new("dockerd");
        command.args([
            "--bridge",
            &self.bridge,
            "--iptables=false",
            &format!("--live-restore={}", self.live_restore),
            "--host",
            &self.host(),
        ]);
        for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(option).arg(self.path(name));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
        until("the test's engine answers", || {
            let asked =
                Command::new("docker").arg("version").env("DOCKER_HOST", self.host()).output().unwrap();
            asked.status.success().then_some(())
        });
    }

    fn stop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        until("the test's engine ends", || daemon.try_wait().unwrap());
    }
}

impl OwnEngine {
    /// Removes its containers, including those of an interrupted build, which would outlive it.
    fn remove_containers(&self) {
        let script = "docker ps --all --quiet | xargs --no-run-if-empty docker rm --force";
        let _ = Command::new("sh").arg("-c").arg(script).env("DOCKER_HOST", self.host()).output();
    }

    /// The processes started with a path of this engine: containerd and its shims.
    fn processes(&self) -> Vec<rustix::process::Pid> {
        let ours = |entry: fs::DirEntry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let path = self.dir.path().to_str()?;
            String::from_utf8_lossy(&command).contains(path).then(|| rustix::process::Pid::from_raw(pid))?
        };
        fs::read_dir("/proc").unwrap().flatten().filter_map(ours).collect()
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.remove_containers();
        }
        self.stop();
        until("nothing of the test's engine is left", || {
            let left = self.processes();
            for pid in &left {
                let _ = rustix::process::kill_process(*pid, rustix::process::Signal::KILL);
            }
            left.is_empty().then_some(())
        });
        let _ = Command::new("ip").args(["link", "delete", &self.bridge]).output();
        unmount_below(self.dir.path());
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {output:?}");
}

/// Unmounts what an engine with live containers leaves mounted.
fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| Path::new(at).starts_with(dir));
    for mount in below.collect::<Vec<_>>().into_iter().rev() {
        let _ = Command::new("umount").arg("--lazy").arg(mount).output();
    }
}

fn own_engine_or_skip(name: &str) -> bool {
    let works = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    if !rustix::process::geteuid().is_root() {
        return skip(name, "an engine of its own needs root");
    }
    if !works(Command::new("dockerd").arg("--version")) {
        return skip(name, "there is no dockerd for an engine of its own");
    }
    // Root in a container may have neither. The network namespace, and the bridge in it, disappear immediately.
    let bridge = ["--mount", "--net", "ip", "link", "add", "uh-probe", "type", "bridge"];
    if !works(Command::new("unshare").args(bridge)) {
        return skip(name, "root may not make mounts and bridges here");
    }
    engine_or_skip(name)
}

/// Without `live-restore` the app ends with its engine, which the deploy can't prevent. It must report its end, and
/// the engine restarts what serves.
#[test]
fn an_engine_that_stops_its_containers_leaves_a_consistent_state() {
    if !own_engine_or_skip("an engine restarted with its containers during a deploy") {
        return;
    }
    let mut engine = OwnEngine::new(false);
    let harbour = Harbour::new(Kind::Docker, Some(engine.host()));
    let host = "[runtime.docker]\nnetworks = [\"host\"]\n";
    harbour.configure(host);
    harbour.deploy("1.0.0");
    harbour.configure(&format!("{host}[health]\nsuccesses = 200\n"));
    let load = harbour.stage.load();
    let mut command = harbour.command(&["blue-green", "--version", "1.0.1"]);
    let deploy = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the candidate runs", || (harbour.running().len() == 2).then_some(()));
    let stopped_at = std::time::Instant::now();
    engine.stop();
    engine.start();
    until("the app is back", || {
        get(harbour.stage.address, "/").is_ok_and(|text| text.trim() == "blue 1.0.0").then_some(())
    });
    let down = stopped_at.elapsed();
    let ran = Ran::of(deploy.wait_with_output().unwrap());
    let serves = harbour.stage.served();
    let (requests, failures) = load.end();
    println!("the engine was restarted: exit {:?}, {serves} serves", ran.code);
    println!("down for {down:?}, {} of {requests} requests failed, {:?}", failures.len(), failures.first());
    println!("{}", ran.text);
    match ran.code {
        Some(0) => assert_eq!(serves, "green 1.0.1"),
        Some(1) => {
            ran.says("nothing has changed for users: blue (v1.0.0) serves");
            assert_eq!(serves, "blue 1.0.0");
            assert_eq!(harbour.running().len(), 1, "the candidate was removed");
        }
        other => panic!("{other:?}: {}", ran.text),
    }
    harbour.expect(0, &["recover"]).says("Nothing to recover");
    harbour.configure(host);
    harbour.deploy("1.0.2");
}

#[test]
fn a_deploy_waits_for_an_engine_that_restarts() {
    if !own_engine_or_skip("an engine restarted during a deploy") {
        return;
    }
    let mut engine = OwnEngine::new(true);
    let harbour = Harbour::new(Kind::Docker, Some(engine.host()));
    let host = "[runtime.docker]\nnetworks = [\"host\"]\n";
    harbour.configure(host);
    harbour.deploy("1.0.0");
    let load = harbour.stage.load();

    // During the health gate: the deploy continues once the engine is back.
    harbour.configure(&format!("{host}[health]\nsuccesses = 200\n"));
    let mut command = harbour.command(&["blue-green", "--version", "1.0.1"]);
    let deploy = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the candidate runs", || (harbour.running().len() == 2).then_some(()));
    engine.stop();
    std::thread::sleep(Duration::from_secs(1));
    engine.start();
    let ran = Ran::of(deploy.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    assert_eq!(harbour.stage.served(), "green 1.0.1");

    // During the build: nothing has changed, and the next deploy works.
    harbour.configure(host);
    harbour.dockerfile("RUN echo building; sleep 60\nCMD [\"perl\", \"/app.pl\"]");
    let mut command = harbour.command(&["blue-green", "--version", "1.0.2"]);
    let mut deploy = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the build runs", || {
        if deploy.try_wait().unwrap().is_some() {
            let mut said = String::new();
            std::io::Read::read_to_string(deploy.stdout.as_mut().unwrap(), &mut said).unwrap();
            panic!("it has ended already: {said}");
        }
        let running = harbour.docker(&["ps", "--no-trunc", "--format", "{{.Command}}"]);
        running.contains("sleep 60").then_some(())
    });
    engine.stop();
    engine.start();
    let ran = Ran::of(deploy.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(1), "{}", ran.text);
    ran.says("nothing has changed for users: green (v1.0.1) serves");
    harbour.dockerfile("CMD [\"perl\", \"/app.pl\"]");
    harbour.deploy("1.0.2");
    assert_eq!(harbour.stage.served(), "blue 1.0.2");
    load.must_be_unharmed();
}
