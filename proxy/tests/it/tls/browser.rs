//! A browser: Chromium loads a page over HTTP/2, uploads, downloads, keeps a WebSocket, and notices nothing of a switch
//! but the new version. Without `chromium`, this says so and is skipped.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::certificates::{Authority, address, home};
use crate::browser;
use crate::harness::{Home, SampleApp, Scripted, Then};

/// How long the browser may take, its start included, on a machine that does other things too.
const WITHIN: Duration = Duration::from_secs(60);

/// Loads what a page loads, and tells `/page/results` what it saw.
const PAGE: &str = r#"<!doctype html><title>page</title><link rel="icon" href="data:,">
<script>
const echo = (socket, text) => new Promise((done, failed) => {
  socket.onmessage = message => done(message.data);
  socket.onclose = () => failed("the WebSocket was closed");
  socket.send(text);
});
async function main() {
  const seen = {};
  const bytes = new Uint8Array(await (await fetch("/bytes/5000000")).arrayBuffer());
  seen.downloaded = bytes.length;
  seen.intact = bytes.every((byte, at) => byte === at % 251);
  const upload = await fetch("/upload", { method: "POST", body: new Uint8Array(3000000) });
  seen.uploaded = (await upload.json()).bytes;
  const socket = new WebSocket("wss://" + location.host + "/ws");
  await new Promise((done, failed) => { socket.onopen = done; socket.onerror = () => failed("no WebSocket"); });
  seen.before = await echo(socket, "before the switch");
  const backend = async () => (await fetch("/", { cache: "no-store" })).headers.get("x-backend");
  seen.first = await backend();
  await fetch("/page/ready", { method: "POST" });
  do { seen.last = await backend(); } while (seen.last === seen.first);
  seen.after = await echo(socket, "after the switch");
  seen.protocols = [...new Set(performance.getEntriesByType("resource").map(entry => entry.nextHopProtocol))];
  seen.protocols.push(performance.getEntriesByType("navigation")[0].nextHopProtocol);
  return seen;
}
main().catch(error => ({ error: String(error) })).then(seen =>
  fetch("/page/results", { method: "POST", body: JSON.stringify(seen) }));
</script>"#;

/// What the page has said.
#[derive(Default)]
struct Said {
    ready: bool,
    results: Option<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_in_a_browser_notices_nothing_of_a_switch() {
    let Some(version) = browser::version() else { return };
    let said = Arc::new(Mutex::new(Said::default()));
    let told = Arc::clone(&said);
    let page = Scripted::start(move |head, stream| page(head, stream, Arc::clone(&told))).await;
    let (blue, green) = (SampleApp::start("blue", "1.0.0").await, SampleApp::start("green", "1.0.1").await);
    let authority = Authority::new();
    let pair = authority.issue(&["app.test"]);
    let home = home((blue.address, green.address), &authority, &[("app", &pair)], "", "").service(&format!(
        "[services.page]\npath_prefix = \"/page\"\nactive = \"blue\"\n\
         [services.page.backends.blue]\nendpoints = [\"{}\"]",
        page.address
    ));
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let port = address(&proxy).await.port();

    let mut browser = chromium(&home, port).spawn().unwrap();
    let outcome = tokio::time::timeout(WITHIN, async {
        until_said(&said, |said| said.ready.then_some(())).await;
        proxy.switch("green").await;
        until_said(&said, |said| said.results.clone()).await
    })
    .await;
    browser.kill().unwrap();
    browser.wait().unwrap();
    let said = browser::said(&home);
    let results = outcome.unwrap_or_else(|_| panic!("{version} tells nothing: {said}"));

    let results: serde_json::Value = serde_json::from_str(&results).unwrap();
    let expected = serde_json::json!({
        "downloaded": 5_000_000, "intact": true, "uploaded": 3_000_000,
        "before": "before the switch", "after": "after the switch",
        "first": "blue", "last": "green", "protocols": ["h2", "h2"],
    });
    assert_eq!(results, expected, "{said}");
    let console: Vec<&str> = said.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(console.is_empty(), "{console:#?}");
}

/// Answers for the page, and notes what it tells.
async fn page(head: String, mut stream: TcpStream, said: Arc<Mutex<Said>>) -> (TcpStream, Then) {
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.unwrap();
    let path = head.split(' ').nth(1).unwrap();
    let answer = match path {
        "/page" => PAGE,
        "/page/ready" => {
            said.lock().unwrap().ready = true;
            ""
        }
        _ => {
            said.lock().unwrap().results = Some(String::from_utf8(body).unwrap());
            ""
        }
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\r\n",
        answer.len()
    );
    stream.write_all([head.as_bytes(), answer.as_bytes()].concat().as_slice()).await.unwrap();
    (stream, Then::KeepAlive)
}

async fn until_said<T>(said: &Mutex<Said>, look: impl Fn(&Said) -> Option<T>) -> T {
    loop {
        if let Some(found) = look(&said.lock().unwrap()) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Chromium on the page. It trusts the certificate by its key.
fn chromium(home: &Home, port: u16) -> Command {
    let pin = format!(
        "openssl x509 -in '{}' -pubkey -noout | openssl pkey -pubin -outform der | \
         openssl dgst -sha256 -binary | openssl base64 -A",
        home.path("app.crt").display()
    );
    let pin = Command::new("sh").args(["-c", &pin]).output().unwrap();
    let mut command = browser::chromium(home, &format!("https://app.test:{port}/page"));
    command.arg(format!("--ignore-certificate-errors-spki-list={}", String::from_utf8(pin.stdout).unwrap()));
    command
}
