//! Path rules of a service, with the real program.

mod access;
mod headers;
mod matching;
mod replies;
mod settings;
mod switching;

use tokio::io::AsyncWriteExt as _;

use crate::harness::{Home, Proxy, Scripted, Then};

/// An app that answers with the head of each request.
async fn echo() -> Scripted {
    Scripted::start(|head, mut stream| async move {
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
        let _ = stream.write_all(reply.as_bytes()).await;
        (stream, Then::KeepAlive)
    })
    .await
}

/// uh-proxy before an app, with these rules for its service, as `[[paths]]`.
async fn with_rules(app: &Scripted, rules: &str) -> (Home, Proxy) {
    let home = home(app, "", rules);
    let proxy = home.start().await;
    (home, proxy)
}

fn home(app: &Scripted, service: &str, paths: &str) -> Home {
    Home::new(app.address, "127.0.0.1:9")
        .service(&format!("{service}\n[services.app.health]\nenabled = false\n{}", rules(paths)))
}

/// With full names of tables.
fn rules(text: &str) -> String {
    text.replace("[[paths]]", "[[services.app.paths]]")
}
