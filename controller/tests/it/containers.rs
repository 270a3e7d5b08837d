//! The `docker` and `compose` runtimes with a real Docker Engine. Without one, each test prints that it is skipped.

use std::cell::RefCell;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use uh_controller::config;
use uh_controller::runtime::{
    Candidate, Ending, Frozen, InstanceId, LogQuery, Runtime, RuntimeError, State, for_config,
};
use uh_controller::waiting::Waiting;

use crate::harness::{free_port, until};

/// The base of the images built here: the smallest base of the project's own images. It has perl.
pub(crate) const BASE: &str = "debian:bookworm-slim";

/// A small app: answers with its version, allocates memory on request, and logs when it is asked to exit.
pub(crate) const APP: &str = r#"
use strict; use IO::Socket::INET;
$| = 1;
$SIG{TERM} = sub { print "told to end\n"; exit 0 };
if ($ENV{EAT}) { my @eaten; push @eaten, "x" x 1_000_000 while 1 }
if ($ENV{FAIL}) { print "cannot start: $ENV{FAIL}\n"; exit 7 }
my $port = $ENV{PORT};
my $listener = IO::Socket::INET->new(LocalPort => $port, Listen => 10, ReuseAddr => 1) or die "$!";
print "listening as $ENV{DEPLOYMENT_ENV} $ENV{APP_VERSION}\n";
while (1) {
  my $client = $listener->accept or next;
  my $line = <$client>;
  if ($line =~ m{/eat}) { my @eaten; push @eaten, "x" x 1_000_000 while 1 }
  my $body = "$ENV{DEPLOYMENT_ENV} $ENV{APP_VERSION}";
  print $client "HTTP/1.0 200 OK\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
  close $client;
}
"#;

fn engine_answers() -> bool {
    let asked = Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output();
    asked.is_ok_and(|output| output.status.success())
}

/// Whether the test can run: an engine answers, and has the base image.
pub(crate) fn engine_or_skip(name: &str) -> bool {
    if !engine_answers() {
        return skip(name, "no Docker Engine answers");
    }
    let image = Command::new("docker").args(["image", "inspect", BASE]).output();
    image.is_ok_and(|output| output.status.success())
        || skip(name, &format!("the engine has no image {BASE}"))
}

/// The same for a test that also needs the compose tool.
pub(crate) fn compose_or_skip(name: &str) -> bool {
    engine_or_skip(name) && (compose_tool().is_some() || skip(name, "there is no compose tool"))
}

/// Prints that the test is skipped, and returns false. With `UH_NEED_ENGINE`, as in CI, it is a failure.
pub(crate) fn skip(name: &str, reason: &str) -> bool {
    assert!(std::env::var_os("UH_NEED_ENGINE").is_none(), "{name}: {reason}");
    println!("skipped: {name}, {reason}");
    false
}

/// The installed compose tool.
fn compose_tool() -> Option<Command> {
    [&["docker", "compose"][..], &["docker-compose"]].into_iter().find_map(|words| {
        let command = || {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command
        };
        let answers = command().arg("version").output().is_ok_and(|output| output.status.success());
        answers.then(command)
    })
}

/// An app's directory, a configuration, and its runtime.
struct Place {
    directory: TempDir,
    ports: [u16; 2],
    service: String,
    runtime: Box<dyn Runtime>,
    started: RefCell<Vec<InstanceId>>,
}

impl Place {
    /// `runtime`: the runtime's part of the configuration.
    fn new(runtime: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::write(root.join("app.pl"), APP).unwrap();
        fs::write(
            root.join("Dockerfile"),
            format!("FROM {BASE}\nCOPY app.pl /app.pl\nSTOPSIGNAL SIGTERM\nCMD [\"perl\", \"/app.pl\"]\n"),
        )
        .unwrap();
        let ports = [free_port(), free_port()];
        let service = format!("t{}", ports[1]);
        let text = format!(
            "[deploy]\nservice = \"{service}\"\nstate_dir = \"state\"\n\
             [backends.blue]\nendpoints = [\"127.0.0.1:{}\"]\n[backends.green]\nendpoints = [\"127.0.0.1:{}\"]\n{runtime}",
            ports[0], ports[1]
        );
        let runtime = for_config(&config::parse(&text, root).unwrap(), Waiting::new(|_| {}));
        Self { directory, ports, service, runtime, started: RefCell::default() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The compose project, named after the directory.
    fn project(&self) -> String {
        self.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_lowercase()
    }

    fn candidate(&self, version: &str) -> Candidate {
        Candidate {
            service: self.service.parse().unwrap(),
            backend: "green".parse().unwrap(),
            version: version.to_owned(),
            endpoints: vec![format!("127.0.0.1:{}", self.ports[1]).parse().unwrap()],
        }
    }

    fn instance(&self, operation: &str) -> InstanceId {
        let candidate = self.candidate("");
        let id = InstanceId::new(&candidate.service, &candidate.backend, operation);
        self.started.borrow_mut().push(id.clone());
        id
    }

    async fn build(&self, version: &str) -> Frozen {
        let lines = RefCell::new(Vec::new());
        let built = self
            .runtime
            .build(&self.candidate(version), &|line| lines.borrow_mut().push(line.to_owned()))
            .await;
        built.unwrap_or_else(|e| panic!("{}: {:?}; {:?}", uh_controller::chain(&e), e.log(), lines.borrow()))
    }

    async fn start(&self, instance: &InstanceId, frozen: &Frozen) {
        self.runtime.start(instance, frozen).await.unwrap_or_else(|e| panic!("{}", uh_controller::chain(&e)));
    }

    async fn state(&self, instance: &InstanceId) -> State {
        self.runtime.state(instance).await.unwrap()
    }

    async fn until(&self, instance: &InstanceId, what: impl Fn(&State) -> bool) -> State {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let state = self.state(instance).await;
            if what(&state) {
                return state;
            }
            assert!(
                Instant::now() < deadline,
                "{instance} is still {state:?}: {:?}",
                self.log(instance).await
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn log(&self, instance: &InstanceId) -> Vec<String> {
        let lines = RefCell::new(Vec::new());
        let query = LogQuery { tail: Some(50), ..LogQuery::default() };
        self.runtime.logs(instance, &query, &|line| lines.borrow_mut().push(line.to_string())).await.unwrap();
        lines.into_inner()
    }

    /// Requests the app until it answers.
    async fn answer(&self) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match ask(self.ports[1], "/") {
                Some(answer) if answer.contains("200 OK") => {
                    return answer.rsplit("\r\n").next().unwrap().to_owned();
                }
                other => assert!(Instant::now() < deadline, "no answer but {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn clean(&self) {
        let started = self.started.borrow().clone();
        for instance in &started {
            self.runtime.remove(instance).await.unwrap();
        }
    }
}

/// A failed test cleans up too.
impl Drop for Place {
    fn drop(&mut self) {
        let project = self.project();
        let mut labels = vec![format!("label=com.docker.compose.project={project}")];
        let started = self.started.borrow();
        labels.extend(started.iter().map(|instance| format!("label=uh-deploy.instance={instance}")));
        for label in labels {
            for id in docker(&["ps", "-aq", "--filter", &label]).lines() {
                docker(&["rm", "-f", id]);
            }
        }
        // The compose tool creates a network for each project.
        docker(&["network", "rm", &format!("{project}_default")]);
        // The names given by the docker runtime, the compose runtime, and the compose tools 1.29 and current.
        let ours = [format!("uh-test-{}", self.service), format!("uh-deploy/{project}-green")];
        let theirs = ["_", "-"].map(|joined| format!("{project}{joined}green"));
        for repository in ours.iter().chain(&theirs) {
            remove_images(repository, docker);
        }
    }
}

/// The output of a docker command; empty if it fails.
fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Removes all tags of an image. `docker` runs a docker command and returns its output.
pub(crate) fn remove_images(repository: &str, docker: impl Fn(&[&str]) -> String) {
    let named = docker(&["images", "--format", "{{.Repository}}:{{.Tag}}", repository]);
    for image in named.lines() {
        docker(&["rmi", image]);
    }
}

fn ask(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

const DOCKER: &str = "[runtime]\nkind = \"docker\"\n[runtime.docker]\ncontext = \".\"\nimage = \"uh-test-{service}:{version}\"\nport = 3000\n";

/// The life of an instance of a container runtime, from build to removal.
async fn lives_its_life(place: &Place) {
    let frozen = place.build("1.0.0").await;
    assert!(frozen.artifact.starts_with("sha256:"), "{}", frozen.artifact);
    let (one, two) = (place.instance("20261125t000001-aaaa"), place.instance("20261125t000002-bbbb"));
    assert_eq!(place.state(&one).await, State::Absent);
    place.start(&one, &frozen).await;
    assert_eq!(place.answer().await, "green 1.0.0");
    // Every call may be repeated.
    place.start(&one, &frozen).await;
    assert_eq!(place.state(&one).await, State::Running { restarts: 0 });
    assert_eq!(place.runtime.find(&"green".parse().unwrap()).await.unwrap(), std::slice::from_ref(&one));
    assert_eq!(place.runtime.find(&"blue".parse().unwrap()).await.unwrap(), []);
    let ended = State::Exited(Ending { code: Some(0), out_of_memory: false });
    for _ in 0..2 {
        assert_eq!(place.runtime.stop(&one, Duration::from_secs(20)).await.unwrap(), ended);
    }
    assert_eq!(place.log(&one).await, ["listening as green 1.0.0", "told to end"]);
    place.runtime.remove(&one).await.unwrap();
    place.runtime.remove(&one).await.unwrap();
    assert_eq!(place.state(&one).await, State::Absent);
    assert_eq!(place.runtime.stop(&one, Duration::ZERO).await.unwrap(), State::Absent);

    // Frozen means frozen: another build of the same version doesn't affect what was frozen before.
    fs::write(place.path().join("app.pl"), APP.replace("my $body = \"", "my $body = \"other ")).unwrap();
    let other = place.build("1.0.0").await;
    assert_ne!(other.artifact, frozen.artifact);
    let thawed: Frozen = serde_json::from_str(&serde_json::to_string(&frozen).unwrap()).unwrap();
    place.start(&two, &thawed).await;
    assert_eq!(place.answer().await, "green 1.0.0");
    place.clean().await;
}

#[tokio::test]
async fn a_docker_instance_lives_its_life() {
    if !engine_or_skip("docker runtime") {
        return;
    }
    lives_its_life(&Place::new(DOCKER)).await;
}

#[tokio::test]
async fn a_failed_build_shows_its_last_lines() {
    if !engine_or_skip("docker runtime, failing build") {
        return;
    }
    let place = Place::new(DOCKER);
    let dockerfile = format!("FROM {BASE}\nRUN echo the compiler says no; exit 3\n");
    fs::write(place.path().join("Dockerfile"), dockerfile).unwrap();
    let error = place.runtime.build(&place.candidate("1.0.0"), &|_| {}).await.unwrap_err();
    let RuntimeError::Build { reason, log } = &error else { panic!("{error:?}") };
    assert!(reason.contains("returned a non-zero code: 3"), "{reason}");
    assert!(log.iter().any(|line| line.as_str() == "the compiler says no"), "{log:?}");
}

#[tokio::test]
async fn a_port_in_use_is_reported_with_its_holder_and_leaves_nothing() {
    if !engine_or_skip("docker runtime, taken port") {
        return;
    }
    let place = Place::new(DOCKER);
    let frozen = place.build("1.0.0").await;
    let (one, two) = (place.instance("20261125t000001-aaaa"), place.instance("20261125t000002-bbbb"));
    let holder = TcpListener::bind(("127.0.0.1", place.ports[1])).unwrap();
    let taken = |error: RuntimeError| match error {
        RuntimeError::PortTaken { endpoint, by } => format!("{endpoint} {by}"),
        other => panic!("{other:?}"),
    };
    let error = place.runtime.start(&one, &frozen).await.unwrap_err();
    assert_eq!(
        taken(error).split_once(' ').unwrap().1.rsplit_once(' ').unwrap().1,
        format!("{})", std::process::id())
    );
    drop(holder);
    place.start(&one, &frozen).await;
    let error = place.runtime.start(&two, &frozen).await.unwrap_err();
    assert_eq!(taken(error), format!("127.0.0.1:{} container {one}", place.ports[1]));
    assert_eq!(place.state(&two).await, State::Absent);
    assert_eq!(place.runtime.find(&"green".parse().unwrap()).await.unwrap(), [one]);
    place.clean().await;
}

#[tokio::test]
async fn an_exit_and_an_out_of_memory_kill_are_distinguished() {
    if !engine_or_skip("docker runtime, exits") {
        return;
    }
    let place = Place::new(&format!("{DOCKER}memory_limit = \"24MiB\"\nrestart = \"no\"\n"));
    let frozen = place.build("1.0.0").await;
    let eater = place.instance("20261125t000001-aaaa");
    place.start(&eater, &frozen).await;
    place.answer().await;
    let _cut = ask(place.ports[1], "/eat");
    let state = place.until(&eater, |state| !state.is_running()).await;
    assert_eq!(state, State::Exited(Ending { code: Some(137), out_of_memory: true }));
    place.runtime.remove(&eater).await.unwrap();

    let failing = Place::new(&format!("{DOCKER}env = {{ FAIL = \"no database\" }}\n"));
    let frozen = failing.build("1.0.0").await;
    let instance = failing.instance("20261125t000001-aaaa");
    failing.start(&instance, &frozen).await;
    let state = failing.until(&instance, |state| !state.is_running()).await;
    assert_eq!(state, State::Exited(Ending { code: Some(7), out_of_memory: false }));
    assert_eq!(failing.log(&instance).await[0], "cannot start: no database");
    failing.clean().await;
}

#[tokio::test]
async fn a_network_name_is_an_alias_and_needs_no_port_of_this_machine() {
    if !engine_or_skip("docker runtime, networks") {
        return;
    }
    let network = Network::new();
    let name = &network.0;
    let place = Place::new(&DOCKER.replace("port = 3000\n", &format!("networks = [\"{name}\"]\n")));
    let candidate = Candidate { endpoints: vec!["green:3009".parse().unwrap()], ..place.candidate("1.0.0") };
    let frozen = place.runtime.build(&candidate, &|_| {}).await.unwrap();
    let instance = place.instance("20261125t000001-aaaa");
    place.start(&instance, &frozen).await;
    let ask = "use IO::Socket::INET; for (1..100) { my $s = IO::Socket::INET->new('green:3009'); \
               if ($s) { print $s \"GET / HTTP/1.0\\r\\n\\r\\n\"; print <$s>; exit 0 } select undef, undef, undef, 0.1 } exit 1";
    let answer = docker(&["run", "--rm", "--network", name, BASE, "perl", "-e", ask]);
    assert!(answer.ends_with("green 1.0.0"), "{answer}");
    // Requests would alternate between two containers of one name, so a second one isn't started.
    let error = place.runtime.start(&place.instance("20261125t000002-bbbb"), &frozen).await.unwrap_err();
    assert_eq!(error.to_string(), format!("green:3009 is in use by container {instance} on network {name}"));
    place.clean().await;
}

/// A container network, removed on drop. It must outlive its containers.
struct Network(String);

impl Network {
    fn new() -> Self {
        let network = Self(format!("uh-test-{}", free_port()));
        assert!(!docker(&["network", "create", &network.0]).is_empty());
        network
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        docker(&["network", "rm", &self.0]);
    }
}

/// Two containers of the deploy tool use the same path for their state directories, and must not see each other's
/// containers.
#[tokio::test]
async fn a_container_belongs_to_the_state_directory_that_started_it() {
    if !engine_or_skip("docker runtime, state directories") {
        return;
    }
    let place = Place::new(DOCKER);
    let frozen = place.build("1.0.0").await;
    let instance = place.instance("20261125t000001-aaaa");
    place.start(&instance, &frozen).await;
    let green = "green".parse().unwrap();
    let id = place.path().join("state/id");
    let own = fs::read(&id).unwrap();
    for other in [None, Some("another\n")] {
        match other {
            Some(text) => fs::write(&id, text).unwrap(),
            None => fs::remove_file(&id).unwrap(),
        }
        assert_eq!(place.runtime.find(&green).await.unwrap(), []);
        assert_eq!(place.state(&instance).await, State::Absent);
        place.runtime.remove(&instance).await.unwrap();
    }
    fs::write(&id, own).unwrap();
    assert_eq!(place.runtime.find(&green).await.unwrap(), [instance]);
    place.clean().await;
}

/// A uh-deploy that was killed while it started a container: the engine continues the start.
#[tokio::test]
async fn a_start_that_completes_after_the_stop_starts_nothing() {
    if !engine_or_skip("docker runtime, late start") {
        return;
    }
    let place = Place::new(DOCKER);
    let instance = place.instance("20261125t000001-aaaa");
    fs::create_dir_all(place.path().join("state")).unwrap();
    fs::write(place.path().join("state/id"), format!("{}\n", place.service)).unwrap();
    let labels = [format!("uh-deploy.instance={instance}"), format!("uh-deploy.state-id={}", place.service)];
    let name = instance.as_str();
    let [one, two] = labels.each_ref().map(String::as_str);
    let create = ["create", "--name", name, "--label", one, "--label", two, BASE, "sleep", "60"];
    assert!(!docker(&create).is_empty());
    assert_eq!(place.runtime.stop(&instance, Duration::from_secs(5)).await.unwrap(), State::Absent);
    assert_eq!(docker(&["start", name]), "", "it was started after it was stopped");
    assert_eq!(place.state(&instance).await, State::Absent);
}

/// The compose tool is a separate process, and outlives a killed uh-deploy.
#[tokio::test]
async fn a_compose_tool_that_was_left_behind_is_killed_by_a_stop() {
    let place = Place::new(COMPOSE);
    let instance = place.instance("20261125t000001-aaaa");
    let document = place.path().join(format!("state/compose/{instance}.json"));
    let mut tool = Command::new("sh");
    tool.args(["-c", "read line; exit 0", "tool", "-f"]).arg(&document).stdin(Stdio::piped());
    let mut tool = tool.spawn().unwrap();
    // The process exists before the kernel knows its arguments.
    let arguments = format!("/proc/{}/cmdline", tool.id());
    until("its arguments can be seen", || (!fs::read(&arguments).unwrap().is_empty()).then_some(()));
    let stopped = place.runtime.stop(&instance, Duration::from_secs(5)).await;
    assert_eq!(stopped.unwrap(), State::Absent);
    // It was killed, but may still be visible for a moment.
    until("the tool has ended", || tool.try_wait().unwrap());
}

const COMPOSE: &str =
    "[runtime]\nkind = \"compose\"\n[runtime.compose]\nenv = { GREETING = \"hello {version}\" }\n";

fn compose_files(place: &Place, service: &str) {
    let port = place.ports[1];
    let text = format!(
        "version: '3.8'\nservices:\n  db:\n    image: not-to-be-started\n  green:\n    {service}\n    depends_on: [db]\n    \
         environment:\n      PORT: '3000'\n      DEPLOYMENT_ENV: green\n      APP_VERSION: ${{APP_VERSION}}\n      \
         GREETING: ${{GREETING}}\n    labels: [team=web]\n    ports: ['127.0.0.1:{port}:3000']\n"
    );
    fs::write(place.path().join("docker-compose.yml"), text).unwrap();
}

#[tokio::test]
async fn a_compose_instance_lives_its_life() {
    if !compose_or_skip("compose runtime") {
        return;
    }
    let place = Place::new(COMPOSE);
    compose_files(&place, "build: .");
    let before = fs::read(place.path().join("docker-compose.yml")).unwrap();
    lives_its_life(&place).await;
    assert_eq!(fs::read(place.path().join("docker-compose.yml")).unwrap(), before);
    let left: Vec<_> = fs::read_dir(place.path().join("state/compose")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The operator's own `up`, and a container that now belongs to another backend: neither is replaced.
#[tokio::test]
async fn a_compose_container_that_is_not_ours_is_left_alone() {
    if !compose_or_skip("compose runtime, containers of others") {
        return;
    }
    let place = Place::new(COMPOSE);
    compose_files(&place, "build: .");
    // Without a port, so that nothing else is in its way.
    let path = place.path().join("docker-compose.yml");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.lines().filter(|line| !line.contains("ports:")).collect::<Vec<_>>().join("\n");
    fs::write(&path, text).unwrap();
    let frozen = place.build("1.0.0").await;
    let instance = place.instance("20261125t000001-aaaa");

    let mut up = compose_tool().unwrap();
    up.args(["up", "-d", "--no-deps", "green"]).current_dir(place.path());
    up.envs([("APP_VERSION", "1.0.0"), ("GREETING", "")]);
    let up = up.output().unwrap();
    assert!(up.status.success(), "{up:?}");
    let label = format!("label=com.docker.compose.project={}", place.project());
    let theirs = docker(&["ps", "-q", "--filter", &label]);
    assert_eq!(theirs.lines().count(), 1, "{theirs}");
    let error = place.runtime.start(&instance, &frozen).await.unwrap_err();
    let said = uh_controller::chain(&error);
    assert!(said.contains("would be replaced, but"), "{said}");
    assert_eq!(docker(&["ps", "-q", "--filter", &label]), theirs, "it runs on");
    docker(&["rm", "-f", theirs.trim()]);

    place.start(&instance, &frozen).await;
    let blue = Frozen { backend: "blue".parse().unwrap(), ..frozen.clone() };
    let as_blue = InstanceId::new(&place.service.parse().unwrap(), &blue.backend, "20261125t000002-bbbb");
    let error = place.runtime.start(&as_blue, &blue).await.unwrap_err();
    assert!(uh_controller::chain(&error).contains("would be replaced"), "{error:?}");
    assert!(place.state(&instance).await.is_running());
    place.clean().await;
}

#[tokio::test]
async fn compose_mistakes_are_reported_before_anything_is_built() {
    if !compose_or_skip("compose runtime, mistakes") {
        return;
    }
    let place = Place::new(COMPOSE);
    fs::write(place.path().join("docker-compose.yml"), "services:\n  web:\n    image: x\n").unwrap();
    let error = place.runtime.build(&place.candidate("1.0.0"), &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("have no service green, only web"), "{error}");
    let checks = place.runtime.checks(&place.candidate("1.0.0")).await;
    assert!(
        checks.iter().any(|check| !check.passed && check.found.contains("no service green")),
        "{checks:?}"
    );
    fs::write(place.path().join("docker-compose.yml"), "services: [\n").unwrap();
    let error = place.runtime.build(&place.candidate("1.0.0"), &|_| {}).await.unwrap_err();
    assert!(!error.log().is_empty(), "{error:?}");
}
