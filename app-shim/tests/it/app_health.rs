//! The app's own health answer in every form of HTTP/1: with `--health both` its status decides.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::process::Command;

use crate::client::{Wire, get};
use crate::shim::{Shim, TALKER, command, within};

/// An answer of the app: what it writes, and whether it then closes the connection.
#[derive(Clone)]
struct Answer {
    pieces: Vec<String>,
    closes: bool,
}

fn answer(pieces: &[&str]) -> Answer {
    Answer { pieces: pieces.iter().map(|piece| (*piece).to_owned()).collect(), closes: false }
}

fn closing(pieces: &[&str]) -> Answer {
    Answer { closes: true, ..answer(pieces) }
}

const OK_CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// An app that gives this answer to every request.
async fn app(answer: Answer) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let mut wire = Wire::accept(&listener).await;
            let answer = answer.clone();
            tokio::spawn(async move {
                if !wire.asked().await {
                    return;
                }
                for piece in &answer.pieces {
                    wire.try_send(piece).await;
                }
                if !answer.closes {
                    // Held open until the shim closes it.
                    let _ = wire.rest().await;
                }
            });
        }
    });
    address
}

/// The shim's health answer in front of such an app.
async fn health(answer: Answer, who: &str) -> String {
    let app = app(answer).await;
    let shim = Shim::start(&app.to_string(), &["--health", who], TALKER);
    let address = shim.address().await;
    shim.log.wait_for("App accepts connections").await;
    get(address, "/api/health").await
}

#[tokio::test]
async fn a_good_answer_is_healthy_in_any_form() {
    let huge = "x".repeat(8 << 20);
    let shapes = [
        ("a length", answer(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"])),
        ("chunked", answer(&[OK_CHUNKED, "2\r\nok\r\n0\r\n\r\n"])),
        ("chunked, then closed", closing(&[OK_CHUNKED, "2\r\nok\r\n0\r\n\r\n"])),
        ("chunked in the head's packet", answer(&[&format!("{OK_CHUNKED}2\r\nok\r\n0\r\n\r\n")])),
        ("chunked with trailers", answer(&[OK_CHUNKED, "2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n"])),
        ("chunked without end", answer(&[OK_CHUNKED, "2\r\nok\r\n"])),
        ("ends with the connection", closing(&["HTTP/1.1 200 OK\r\n\r\nok"])),
        ("ends with a connection that stays", answer(&["HTTP/1.1 200 OK\r\n\r\nok"])),
        ("HTTP/1.0", closing(&["HTTP/1.0 200 OK\r\n\r\nok"])),
        ("keep-alive", answer(&["HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok"])),
        ("100 before", answer(&["HTTP/1.1 100 Continue\r\n\r\n", OK_CHUNKED, "2\r\nok\r\n0\r\n\r\n"])),
        ("103 before", answer(&["HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", OK_CHUNKED, "0\r\n\r\n"])),
        ("no body", answer(&["HTTP/1.1 204 No Content\r\n\r\n"])),
        ("a slow body", answer(&["HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\no"])),
        (
            "a huge body",
            answer(&[&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", huge.len()), &huge]),
        ),
        ("a huge body, chunked", answer(&[OK_CHUNKED, &format!("{:x}\r\n{huge}\r\n0\r\n\r\n", huge.len())])),
    ];
    for (shape, answer) in shapes {
        let answer = health(answer, "both").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{shape}: {answer}");
        assert!(answer.contains("\"status\":\"healthy\""), "{shape}: {answer}");
    }
}

#[tokio::test]
async fn a_bad_answer_gives_its_status_as_the_reason_in_any_form() {
    let head = "HTTP/1.1 503 Service Unavailable\r\n";
    let shapes = [
        ("chunked", answer(&[head, "transfer-encoding: chunked\r\n\r\n", "2\r\nno\r\n0\r\n\r\n"]), "503"),
        ("chunked without end", answer(&[head, "transfer-encoding: chunked\r\n\r\n", "2\r\nno\r\n"]), "503"),
        ("ends with the connection", closing(&[head, "\r\nno"]), "503"),
        ("a length", answer(&[head, "content-length: 2\r\n\r\nno"]), "503"),
        ("a redirect", answer(&["HTTP/1.1 307 Temporary Redirect\r\nlocation: /login\r\n\r\n"]), "307"),
    ];
    for (shape, answer, status) in shapes {
        let answer = health(answer, "both").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{shape}: {answer}");
        assert!(answer.contains(&format!("the app answers {status} ")), "{shape}: {answer}");
    }
}

#[tokio::test]
async fn a_missing_answer_is_distinguished_from_a_late_one() {
    let silent = health(answer(&[]), "both").await;
    assert!(silent.contains("doesn't answer at /api/health within 1.5s"), "{silent}");
    let closed = health(closing(&[]), "both").await;
    assert!(closed.contains("doesn't answer at /api/health: "), "{closed}");
    let half = health(closing(&["HTTP/1.1 200 OK\r\ncontent-"]), "both").await;
    assert!(half.contains("doesn't answer at /api/health: "), "{half}");
}

#[tokio::test]
async fn with_health_app_the_status_decides_too() {
    let head = "HTTP/1.1 503 Service Unavailable\r\ntransfer-encoding: chunked\r\n\r\n";
    let cases = [
        (answer(&[OK_CHUNKED, "2\r\nok\r\n"]), 0, ""),
        (answer(&["HTTP/1.1 204 No Content\r\n\r\n"]), 0, ""),
        (
            answer(&[head, "12\r\ndatabase is no use\r\n0\r\n\r\n"]),
            1,
            "503 Service Unavailable: database is no use",
        ),
        (answer(&[head, "12\r\ndatabase is no use\r\n"]), 1, "503 Service Unavailable: database is no use"),
    ];
    for (answer, code, reason) in cases {
        let app = app(answer).await;
        let shim = Shim::start(&app.to_string(), &["--health", "app"], TALKER);
        let address = shim.address().await.to_string();
        shim.log.wait_for("App accepts connections").await;
        let mut check = Command::new(env!("CARGO_BIN_EXE_app-shim"));
        check.args(["--check", "--listen", &address]);
        let said = within("a check", check.output()).await.unwrap();
        assert_eq!(said.status.code(), Some(code), "{said:?}");
        assert!(String::from_utf8_lossy(&said.stderr).contains(reason), "{said:?}");
    }
}

/// Waits until the shim reports that it and its app are healthy.
async fn becomes_healthy(shim: &Shim) {
    let address = shim.address().await;
    shim.log.wait_for("App accepts connections").await;
    let mut last = String::new();
    for _ in 0..100 {
        last = get(address, "/api/health").await;
        if last.starts_with("HTTP/1.1 200 ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never healthy: {last}\n{:#?}", shim.log.all());
}

#[tokio::test]
async fn node_after_write_head_is_healthy() {
    let directory = tempfile::tempdir().unwrap();
    let app = format!("unix:{}", directory.path().join("app.sock").display());
    let script = "require('http').createServer((_, answer) => {
        answer.writeHead(200, { 'content-type': 'application/json' });
        answer.end(JSON.stringify({ status: 'healthy' }));
    }).listen(process.env.PORT)";
    let options = ["--listen", "127.0.0.1:0", "--app", &app, "--health", "both"];
    becomes_healthy(&Shim::spawn(command(&options, &["node", "-e", script]))).await;
}

/// A health route in a real Next.js app. `tests/node/next.sh DIRECTORY` sets it up from the npm registry, so the test
/// only runs if `UH_NEXT_APP` names that directory.
#[tokio::test]
#[allow(clippy::print_stdout, reason = "who reads the results must know what was not run")]
async fn a_real_next_app_is_healthy() {
    let Some(directory) = std::env::var_os("UH_NEXT_APP") else {
        println!("skipped: set UH_NEXT_APP to a directory made by app-shim/tests/node/next.sh");
        return;
    };
    let next = Path::new(&directory).join("node_modules/next/dist/bin/next");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = ["--listen", "127.0.0.1:0", "--app", &port.to_string(), "--health", "both"];
    let script = format!("cd {directory:?} && exec node {next:?} start -H \"$HOSTNAME\" -p \"$PORT\"");
    let mut command = command(&options, &["sh", "-c", &script]);
    command.env("NEXT_TELEMETRY_DISABLED", "1");
    becomes_healthy(&Shim::spawn(command)).await;
}
