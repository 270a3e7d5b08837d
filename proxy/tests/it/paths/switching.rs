//! A path has no switch of its own: all paths of a service move together, and a reload changes all rules at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::{echo, home, rules};
use crate::harness::{Home, SampleApp, Scripted, Then, cli, soon, until};
use crate::wire::Wire;

/// As many as a test that is run often can afford. More with `UH_SWITCHES`.
fn switches() -> usize {
    std::env::var("UH_SWITCHES").ok().and_then(|count| count.parse().ok()).unwrap_or(200)
}

/// Each with another kind of rule, and one with none.
const PATHS: [&str; 6] = ["/", "/slow/x", "/exact", "/a.js", "/v1/x", "/marked"];

const RULES: &str = "\
[[paths]]
match = \"/slow\"
timeouts = { read = \"300s\" }
[[paths]]
match = \"/exact\"
exact = true
limits = { body_bytes = \"1MiB\" }
[[paths]]
suffixes = [\".js\"]
response_headers = { set = { Cache-Control = \"max-age=60\" } }
[[paths]]
match = \"/v1\"
replace_prefix = \"/v2\"
[[paths]]
match = \"/marked\"
request_headers = { set = { X-Marked = \"yes\" } }
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_reply_to_a_switch_no_path_has_the_old_backend() {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let home = Home::new(blue.address, green.address).service(&rules(RULES));
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = (0..6)
        .map(|n| {
            let (stop, served, address) = (Arc::clone(&stop), Arc::clone(&served), proxy.address);
            tokio::spawn(async move {
                let mut wire = Wire::connect(address).await;
                for path in PATHS.into_iter().cycle().skip(n) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let response = wire.get(path).await;
                    assert!(response.header("x-backend").is_some(), "{path}: {}", response.head);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut observers = Vec::new();
    for _ in PATHS {
        observers.push(Wire::connect(proxy.address).await);
    }
    for n in 0..switches() {
        let to = if n % 2 == 0 { "green" } else { "blue" };
        // The command itself now and then, which is a process, and otherwise the call that it makes.
        if n % 10 == 0 {
            let (exit, _, said) = cli(&home.socket(), &["switch", to]).await;
            assert_eq!(exit, 0, "{said}");
        } else {
            proxy.switch(to).await;
        }
        // All at once, each on a kept connection, and sent after the reply.
        let asked = observers.iter_mut().zip(PATHS).map(async |(wire, path)| (path, wire.get(path).await));
        for (path, response) in futures_join(asked).await {
            assert_eq!(response.header("x-backend"), Some(to), "switch {n}: {path}: {}", response.head);
        }
    }
    stop.store(true, Ordering::Relaxed);
    for task in load {
        soon("the load", task).await.unwrap();
    }
    let served = served.load(Ordering::Relaxed);
    println!("{} switches over {} paths, under a load of {served} requests", switches(), PATHS.len());
    assert!(served > switches() as u64, "too little load to mean anything: {served}");
}

/// Runs all of them at the same time.
async fn futures_join<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pinned: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        for (future, done) in pinned.iter_mut().filter(|(_, done)| done.is_none()) {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(cx) {
                *done = Some(value);
            }
        }
        if pinned.iter().all(|(_, done)| done.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    pinned.into_iter().filter_map(|(_, done)| done).collect()
}

fn marked(mark: &str) -> String {
    let rule = |path: &str| {
        format!(
            "[[paths]]\nmatch = \"{path}\"\nrequest_headers = {{ set = {{ X-Mark = \"{mark}\" }} }}\n\
             response_headers = {{ set = {{ X-Mark = \"{mark}\" }} }}\n"
        )
    };
    [rule("/a"), rule("/b")].concat()
}

/// Which mark the app got, and which one the client.
fn marks(response: &crate::wire::Response) -> (String, String) {
    let text = response.text();
    let sent = text.lines().find_map(|line| line.strip_prefix("X-Mark: ")).unwrap_or_default().to_owned();
    (sent, response.header("x-mark").unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_reload_changes_all_paths_at_once() {
    let app = echo().await;
    let home = home(&app, "", &marked("one"));
    let proxy = home.start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = ["/a/x", "/b/x"]
        .into_iter()
        .map(|path| {
            let (stop, address) = (Arc::clone(&stop), proxy.address);
            tokio::spawn(async move {
                let mut wire = Wire::connect(address).await;
                while !stop.load(Ordering::Relaxed) {
                    let (sent, answered) = marks(&wire.get(path).await);
                    assert_eq!(sent, answered, "one request, one rule");
                }
            })
        })
        .collect();
    let (mut a, mut b) = (Wire::connect(proxy.address).await, Wire::connect(proxy.address).await);
    let text = home.config();
    for n in 0..40 {
        let mark = if n % 2 == 0 { "two" } else { "one" };
        home.write_config(&text.replace("\"one\"", &format!("{mark:?}")));
        proxy.client.reload().await.unwrap();
        for (wire, path) in [(&mut a, "/a"), (&mut b, "/b")] {
            assert_eq!(
                marks(&wire.get(path).await),
                (mark.to_owned(), mark.to_owned()),
                "reload {n}: {path}"
            );
        }
    }
    stop.store(true, Ordering::Relaxed);
    for task in load {
        soon("the load", task).await.unwrap();
    }
}

#[tokio::test]
async fn a_request_keeps_the_rule_that_it_began_with() {
    let app = Scripted::start(|head, mut stream| async move {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
        let _ = stream.write_all(reply.as_bytes()).await;
        (stream, Then::KeepAlive)
    })
    .await;
    let home = home(&app, "", &marked("one"));
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
    until("it has arrived", async || (app.seen() == 1).then_some(())).await;
    // Neither the timeout, nor the fields, nor the lack of a rule concerns it.
    let service = "[services.app.timeouts]\nread = \"100ms\"\n[services.app.backends.blue]";
    let text = home.config().replace("[services.app.backends.blue]", service);
    home.write_config(&text.replace("match = \"/a\"", "match = \"/c\""));
    proxy.client.reload().await.unwrap();
    assert_eq!(marks(&wire.response().await), ("one".to_owned(), "one".to_owned()));
    assert_eq!(wire.get("/a").await.status, 504);
}
