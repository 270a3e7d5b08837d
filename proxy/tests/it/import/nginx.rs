//! What is imported behaves as nginx does: the same requests are sent to nginx with a fixture, and to uh-proxy with what
//! it was imported as. Every difference stands in a table, with its reason.

mod cases;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use uh_proxy::import::import;
use uh_testkit::process::{Process, log_to};

use cases::{CASES, Case, DIFFERENCES, Difference, FILES};

use super::super::harness::{Home, Proxy, soon, until};
use super::super::recorder::{End, Recorder};

const NGINX: &str = "/usr/sbin/nginx";

/// In answers that both give by themselves, these differ: uh-proxy's are never cached.
const OWN_ANSWERS: [&str; 2] = ["Cache-Control", "X-Content-Type-Options"];

/// What a client and an app can see of a request, by name.
type Observed = Vec<(&'static str, String)>;

/// Response fields that are compared.
const RESPONSE_FIELDS: [&str; 14] = [
    "Content-Encoding",
    "Vary",
    "Location",
    "Content-Type",
    "Cache-Control",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "Referrer-Policy",
    "Content-Security-Policy",
    "Permissions-Policy",
    "Access-Control-Allow-Origin",
    "X-Powered-By",
    "Set-Cookie",
];

/// Request fields that are compared if nginx sends them.
const REQUEST_FIELDS: [&str; 8] = [
    "Host",
    "X-Real-IP",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "Upgrade",
    "X-Tenant",
    "Content-Length",
];

fn answer(target: &str) -> (Vec<u8>, End) {
    let status = if target.contains("missing") { "404 Not Found" } else { "200 OK" };
    let kind = match target.rsplit_once('.') {
        Some((_, "css")) => "text/css",
        Some((_, "svg")) => "image/svg+xml",
        _ => "text/html",
    };
    let repeated = if target.contains("larger") { 2500 } else { 1000 };
    let body = "ok".repeat(if target.contains("large") { repeated } else { 1 });
    let head = format!("X-Powered-By: Express\r\nContent-Type: {kind}\r\nSet-Cookie: a=b");
    (
        format!("HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes(),
        End::Keep,
    )
}

/// A field's values; several are the same as one with commas.
fn field(head: &str, name: &str, separator: char) -> String {
    let fields = head.split(separator).filter_map(|line| line.trim_end().split_once(": "));
    let named = fields.filter(|(found, _)| found.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value).collect::<Vec<_>>().join(", ")
}

/// Sends a request as in [`Case::requests`], and returns the head of the answer.
async fn ask(address: SocketAddr, host: &str, request: &str) -> String {
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let extra = match words.next() {
        Some("upgrade") => "Connection: Upgrade\r\nUpgrade: websocket\r\n".to_owned(),
        Some("page") => "Accept: text/html\r\nConnection: close\r\n".to_owned(),
        Some("gzip") => "Accept-Encoding: gzip\r\nConnection: close\r\n".to_owned(),
        Some(length) => format!("Content-Length: {length}\r\nConnection: close\r\n"),
        None if method == "POST" => "Content-Length: 0\r\nConnection: close\r\n".to_owned(),
        None => "Connection: close\r\n".to_owned(),
    };
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    if request.ends_with(" 10") {
        stream.write_all(b"0123456789").await.unwrap();
    } else if request.ends_with("000000000") {
        // A body that is announced but not sent: the app must not wait for it.
        stream.shutdown().await.unwrap();
    }
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        match soon(request, stream.read_u8()).await {
            Ok(byte) => answer.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// What one request looks like on both sides.
async fn observe(address: SocketAddr, case: &Case, request: &str, apps: &[Recorder; 3]) -> Observed {
    let answer = ask(address, case.host, request).await;
    let mut observed = vec![("status", answer.split(' ').nth(1).unwrap_or_default().to_owned())];
    for name in RESPONSE_FIELDS {
        observed.push((name, field(&answer, name, '\n')));
    }
    observed.push(("length", field(&answer, "Content-Length", '\n')));
    for (number, app) in ["first", "second", "third"].into_iter().zip(apps) {
        for seen in app.take() {
            observed.push(("app", number.to_owned()));
            observed.push(("path", seen.head.split(' ').nth(1).unwrap_or_default().to_owned()));
            for name in REQUEST_FIELDS {
                observed.push((name, field(&seen.head, name, '|')));
            }
        }
    }
    observed
}

/// What differs, by name. Request fields that only uh-proxy sends don't count.
fn differences(nginx: &Observed, proxy: &Observed) -> BTreeSet<(&'static str, String)> {
    let of = |observed: &Observed, name: &str| {
        observed.iter().find(|(found, _)| *found == name).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let own = of(nginx, "app").is_empty() && of(proxy, "app").is_empty();
    // The page of a redirect or an error is each one's own.
    let page = own && of(nginx, "status").as_str() >= "300";
    let names: BTreeSet<&'static str> = nginx.iter().chain(proxy).map(|(name, _)| *name).collect();
    let differs = |name: &&'static str| {
        let (theirs, ours) = (of(nginx, name), of(proxy, name));
        let expected = (theirs.is_empty() && REQUEST_FIELDS.contains(name))
            || (own && OWN_ANSWERS.contains(name))
            || (page && ["Content-Type", "length"].contains(name));
        theirs != ours && !expected
    };
    let both =
        |name: &'static str| (name, format!("nginx {:?}, uh-proxy {:?}", of(nginx, name), of(proxy, name)));
    names.into_iter().filter(differs).map(both).collect()
}

/// A free port.
async fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// A fixture that listens here and passes requests to these apps.
fn rewritten(case: &Case, dir: &Path, listen: SocketAddr, apps: &[Recorder; 3]) -> String {
    let text = fs::read_to_string(super::folder().join(format!("{}.conf", case.fixture))).unwrap();
    let mut text = text.replace("listen 80", &format!("listen {listen}"));
    text = text.replace("/srv/shop", &dir.display().to_string());
    for (names, app) in case.apps.iter().zip(apps) {
        for name in *names {
            text = text.replace(name, &app.address.to_string());
        }
    }
    text
}

/// nginx with a fixture.
async fn start_nginx(dir: &Path, fixture: &Path, address: SocketAddr) -> Process {
    let temp = |name: &str| format!("{name}_temp_path {};\n", dir.join(name).display());
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].into_iter().map(temp).collect();
    let main = format!(
        "daemon off;\nmaster_process off;\npid {};\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}include {};\n}}\n",
        dir.join("nginx.pid").display(),
        fixture.display()
    );
    let config = dir.join("nginx.conf");
    fs::write(&config, main).unwrap();
    let log = dir.join("nginx.log");
    let mut command = Command::new(NGINX);
    command.arg("-e").arg("stderr").arg("-p").arg(dir).arg("-c").arg(&config);
    log_to(&mut command, &log).unwrap();
    let mut process = Process::spawn_as("nginx", &mut command, &log).unwrap();
    until("nginx listens", async || {
        process.check_running().unwrap();
        TcpStream::connect(address).await.ok()
    })
    .await;
    process
}

/// uh-proxy with what a fixture was imported as.
async fn start_proxy(fixture: &Path, listen: SocketAddr) -> (Home, Proxy) {
    let home = Home::new("127.0.0.1:1", "127.0.0.1:1");
    let imported = import(fixture).unwrap().toml.unwrap();
    let own = format!(
        "[server]\nmetrics = \"127.0.0.1:0\"\nthreads = 1\nadmin_socket = {:?}\nstate_file = {:?}\n",
        home.socket(),
        home.state_file()
    );
    let text = imported
        .replace("[server]\n", &own)
        .replace(&listen.to_string(), "127.0.0.1:0")
        .replace(".health]\n", ".health]\nenabled = false\n");
    home.write_config(&text);
    let proxy = home.start_as(home.command_as_written().unwrap()).await;
    (home, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_imported_behaves_as_nginx_does() {
    if !Path::new(NGINX).exists() {
        return eprintln!(
            "SKIPPED: {NGINX} isn't installed, so the imported configurations aren't compared with it"
        );
    }
    let mut wrong = Vec::new();
    let mut found = BTreeSet::new();
    let mut requests = 0;
    for case in &CASES {
        let apps =
            [Recorder::start(answer).await, Recorder::start(answer).await, Recorder::start(answer).await];
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in FILES {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let address = free().await;
        let fixture = dir.path().join("fixture.conf");
        fs::write(&fixture, rewritten(case, dir.path(), address, &apps)).unwrap();
        let _nginx = start_nginx(dir.path(), &fixture, address).await;
        let (_home, proxy) = start_proxy(&fixture, address).await;
        for &request in case.requests {
            requests += 1;
            let nginx = observe(address, case, request, &apps).await;
            let ours = observe(proxy.address, case, request, &apps).await;
            for (name, values) in differences(&nginx, &ours) {
                let is = |known: &&Difference| {
                    known.fixture == case.fixture
                        && (known.request == request || known.request == "*")
                        && (known.names.contains(&name) || known.names == ["*"])
                };
                match DIFFERENCES.iter().position(|known| is(&known)) {
                    Some(known) => drop(found.insert(known)),
                    None => {
                        wrong.push(format!("(\"{}\", \"{request}\", \"{name}\"): {values}", case.fixture));
                    }
                }
            }
        }
    }
    println!("{requests} requests to both; known differences:");
    DIFFERENCES.iter().for_each(|known| {
        println!("  {} {}: {:?}: {}", known.fixture, known.request, known.names, known.why);
    });
    let known = DIFFERENCES.iter().enumerate();
    let gone: Vec<&Difference> =
        known.filter(|(at, _)| !found.contains(at)).map(|(_, known)| known).collect();
    assert!(wrong.is_empty(), "these differences aren't known:\n{}", wrong.join("\n"));
    assert!(gone.is_empty(), "these differences are gone: {gone:#?}");
}
