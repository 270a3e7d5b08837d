//! A page of a real Next.js app in a browser: it stays open while its version is replaced and comes back, and everything that
//! it asks for is there.
//!
//! Needs node, npm and Chromium, and without them says so and is skipped. The app in `proxy/tests/nextjs` is built twice, in
//! the target directory, where the builds stay: the first run downloads Next.js and takes one to three minutes.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uh_testkit::process::Process;
use uh_testkit::wait::{free_address, until_within};

use super::register;
use crate::browser;
use crate::harness::{Home, Proxy, Scripted, Then, until};

/// How long npm may take, and a build, on a machine that does other things too.
const BUILT_WITHIN: Duration = Duration::from_secs(900);

/// How long a tab may take for a step; the first one includes the start of the browser.
const WITHIN: Duration = Duration::from_secs(60);

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nextjs");

const OLD: &str = "1.0.0";
const NEW: &str = "1.0.1";

/// What the page asks for is looked for after a 404. It names its deployment, but nobody listens.
const BY_404: &str = "previous_for_actions = true\n\
    [[services.app.paths]]\nmatch = \"/_next/static\"\nprevious_on_404 = true";

/// The page names its deployment, and goes on within it.
const BY_NAME: &str = "deployment_id = \"{version}\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "downloads and builds a Next.js app"]
async fn an_old_tab_of_a_nextjs_app_keeps_working_across_a_switch_and_a_rollback() {
    let Some(builds) = builds().await else { return };
    if browser::version().is_none() {
        return;
    }
    let (blue, green) = (Server::start(&builds, OLD).await, Server::start(&builds, NEW).await);

    // Without any of it, the tab breaks. So what follows isn't luck.
    let tab = Tab::open(&blue, &green, "", false).await;
    assert_eq!(tab.step(0).await["missing"], json!([]));
    tab.switch("green").await;
    let broken = tab.step(1).await;
    assert!(broken.get("failed").is_some(), "{broken}");
    tab.close().await;

    for (service, navigates) in [(BY_404, false), (BY_NAME, true)] {
        let tab = Tab::open(&blue, &green, service, navigates).await;
        tab.works(0).await;
        tab.switch("green").await;
        tab.works(1).await;
        let metrics = tab.proxy.client.metrics().await.unwrap();
        if navigates {
            assert!(counted(&metrics, "uh_proxy_previous_named_total", "") > 0, "{metrics}");
        } else {
            assert!(counted(&metrics, "uh_proxy_previous_asked_total", "answered") > 0, "{metrics}");
            assert_eq!(counted(&metrics, "uh_proxy_previous_actions_total", "answered"), 2, "{metrics}");
        }
        tab.switch("blue").await;
        tab.works(2).await;
        tab.close().await;
    }
}

fn counted(metrics: &str, name: &str, label: &str) -> u64 {
    let of = |line: &&str| line.starts_with(name) && line.contains(label) && line.contains("\"blue\"");
    let value = metrics.lines().find(of).and_then(|line| line.rsplit(' ').next());
    value.map_or(0, |value| value.parse().unwrap())
}

/// What the page and the test tell each other.
#[derive(Default)]
struct Talk {
    step: usize,
    navigates: bool,
    seen: Vec<Value>,
}

/// A page of the old version, in a browser.
struct Tab {
    home: Home,
    proxy: Proxy,
    talk: Arc<Mutex<Talk>>,
    _browser: Process,
}

impl Tab {
    /// Opens the page, with the old version active. `navigates`: it also goes from page to page.
    async fn open(blue: &Server, green: &Server, service: &str, navigates: bool) -> Self {
        let talk = Arc::new(Mutex::new(Talk { navigates, ..Talk::default() }));
        let with = Arc::clone(&talk);
        let test = Scripted::start(move |head, stream| tell(head, stream, Arc::clone(&with))).await;
        let home =
            Home::new(blue.address, green.address).server("threads = 1").service(service).service(&format!(
                "[services.test]\npath_prefix = \"/test\"\nactive = \"blue\"\n\
             [services.test.backends.blue]\nendpoints = [\"{}\"]",
                test.address
            ));
        let proxy = home.start().await;
        for (name, server, version) in [("blue", blue, OLD), ("green", green, NEW)] {
            register(&proxy, name, server.address, version).await;
        }
        proxy.until_healthy().await;
        let mut command = browser::chromium(&home, &format!("http://app.test:{}/", proxy.address.port()));
        let browser = Process::spawn_as("chromium", &mut command, &home.path("chromium.log")).unwrap();
        Self { home, proxy, talk, _browser: browser }
    }

    async fn switch(&self, to: &str) {
        self.proxy.switch(to).await;
    }

    /// Has the page do everything that it does in a step, and returns what it saw.
    async fn step(&self, step: usize) -> Value {
        self.talk.lock().step = step;
        let seen = until_within(WITHIN, "the page has done a step", async || {
            let talk = self.talk.lock();
            talk.seen.iter().find(|seen| seen["step"] == step).cloned()
        })
        .await;
        seen.unwrap_or_else(|error| panic!("{error}: {}", browser::said(&self.home)))
    }

    /// The same, which must succeed with what is of the old version.
    async fn works(&self, step: usize) {
        let seen = self.step(step).await;
        let chunk = format!("{} {OLD}", ["a", "b", "c"][step]);
        assert_eq!((&seen["chunk"], &seen["missing"]), (&json!(chunk), &json!([])), "{seen}");
        assert!(seen["assets"].as_u64() > Some(3), "{seen}");
        for (call, bytes) in [("small", 1), ("large", 50_000)] {
            assert_eq!(
                (&seen[call]["version"], &seen[call]["bytes"]),
                (&json!(OLD), &json!(bytes)),
                "{seen}"
            );
        }
        let calls = seen["small"]["calls"].as_u64().map(|calls| calls + 1);
        assert_eq!(seen["large"]["calls"].as_u64(), calls, "each was executed once: {seen}");
        let page = if self.talk.lock().navigates { json!(OLD) } else { Value::Null };
        assert_eq!(seen["page"], page, "{seen}");
    }

    /// Closes it. Unless it has failed, nothing that it has asked for was missing.
    async fn close(self) {
        let seen = self.talk.lock().seen.clone();
        let lines = until("all is logged", async || {
            let lines = self.home.access_log();
            let told = lines.iter().filter(|line| line["path"] == "/test/seen").count();
            (told >= seen.len()).then_some(lines)
        })
        .await;
        // The page has an icon in itself. Chromium sometimes asks for this one before it knows, and no build has it.
        let asked = lines.iter().filter(|line| line["path"] != "/favicon.ico");
        let missing: Vec<_> = asked.filter(|line| line["status"] == 404).collect();
        let failed = seen.iter().any(|seen| seen.get("failed").is_some());
        assert!(missing.is_empty() != failed, "{missing:#?}\n{}", browser::said(&self.home));
    }
}

/// Tells the page what to do, and notes what it has seen.
async fn tell(head: String, mut stream: TcpStream, talk: Arc<Mutex<Talk>>) -> (TcpStream, Then) {
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.unwrap();
    let answer = {
        let mut talk = talk.lock();
        if head.starts_with("POST /test/seen ") {
            talk.seen.push(serde_json::from_slice(&body).unwrap());
        }
        json!({ "step": talk.step, "navigates": talk.navigates }).to_string()
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        answer.len()
    );
    stream.write_all((head + &answer).as_bytes()).await.unwrap();
    (stream, Then::KeepAlive)
}

/// A build that serves.
struct Server {
    address: SocketAddr,
    _process: Process,
}

impl Server {
    async fn start(builds: &Path, version: &str) -> Self {
        let address = free_address();
        let mut command = Command::new("node");
        command
            .arg("server.js")
            .current_dir(builds.join(version))
            .env("HOSTNAME", address.ip().to_string())
            .env("PORT", address.port().to_string());
        let mut process = Process::spawn(version, &mut command, builds).unwrap();
        until("the app listens", async || {
            process.check_running().unwrap();
            TcpStream::connect(address).await.ok()
        })
        .await;
        Self { address, _process: process }
    }
}

/// The directory with both builds. `None`: something is missing, and that is said.
async fn builds() -> Option<PathBuf> {
    let mut tools = String::new();
    for tool in ["node", "npm"] {
        let Ok(version) = Command::new(tool).arg("--version").output() else {
            eprintln!("skipped: {tool} isn't installed (apt-get install nodejs npm)");
            return None;
        };
        tools.push_str(&String::from_utf8_lossy(&version.stdout));
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nextjs");
    let stamp = tools + &text_of(Path::new(SOURCE));
    if fs::read_to_string(dir.join("stamp")).is_ok_and(|built| built == stamp) {
        return Some(dir);
    }
    let _ = fs::remove_dir_all(&dir);
    let work = dir.join("work");
    copy(Path::new(SOURCE), &work);
    run(&dir, "npm", Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&work)).await;
    for version in [OLD, NEW] {
        let mut build = Command::new("node");
        build
            .args(["node_modules/next/dist/bin/next", "build"])
            .env("VERSION", version)
            .env("NEXT_TELEMETRY_DISABLED", "1")
            .current_dir(&work);
        run(&dir, "build", &mut build).await;
        fs::rename(work.join(".next/standalone"), dir.join(version)).unwrap();
        fs::rename(work.join(".next/static"), dir.join(version).join(".next/static")).unwrap();
        // A build that starts from nothing, as in CI: else it would keep the key from which the ids of actions are made.
        fs::remove_dir_all(work.join(".next")).unwrap();
    }
    fs::remove_dir_all(&work).unwrap();
    fs::write(dir.join("stamp"), stamp).unwrap();
    Some(dir)
}

/// Runs a command to its end.
async fn run(dir: &Path, name: &str, command: &mut Command) {
    let mut process = Process::spawn(name, command, dir).unwrap();
    let status = process.ended(BUILT_WITHIN).await.unwrap();
    assert!(status.success(), "{name}: {status}\n{}", process.output().unwrap());
}

/// The files of the app's source.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    // Of a build by hand.
    entries.retain(|path| !path.ends_with("node_modules") && !path.ends_with(".next"));
    entries.sort();
    let files = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    entries.into_iter().flat_map(files).collect()
}

fn text_of(dir: &Path) -> String {
    files(dir)
        .iter()
        .map(|file| format!("{}\n{}", file.display(), fs::read_to_string(file).unwrap()))
        .collect()
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let to = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&file, to).unwrap();
    }
}
