//! Real Socket.IO over two endpoints: long polling with several requests for one session, and then an upgrade.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::harness::{Home, soon};

/// How many clients connect, one after the other. Without stickiness, each one's second request reaches its server with
/// a chance of one half.
const CLIENTS: usize = 12;

/// Socket.IO from the registry of npm, in a directory of its own.
struct Installed(TempDir);

impl Installed {
    /// `None`: it can't be installed here.
    async fn here() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node");
        for file in ["package.json", "socket_io.js"] {
            std::fs::copy(source.join(file), dir.path().join(file)).unwrap();
        }
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--silent", "--ignore-scripts"])
            .current_dir(dir.path());
        npm.stdin(Stdio::null()).kill_on_drop(true);
        let installed = tokio::time::timeout(std::time::Duration::from_secs(120), npm.output()).await;
        match installed {
            Ok(Ok(output)) if output.status.success() => Some(Self(dir)),
            _ => {
                println!("skipped: npm or its registry isn't available, so there is no Socket.IO");
                None
            }
        }
    }

    fn node(&self) -> Command {
        let mut node = Command::new("node");
        node.arg("socket_io.js").current_dir(self.0.path());
        node.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        node
    }

    async fn server(&self) -> (Child, u16) {
        let mut server = self.node().arg("server").spawn().unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let port = soon("a server", lines.next_line()).await.unwrap().unwrap();
        (server, port.parse().unwrap())
    }

    /// What happened to each client.
    async fn clients(&self, address: std::net::SocketAddr) -> Vec<Value> {
        let mut clients = self.node();
        clients.args(["clients", &format!("http://{address}"), &CLIENTS.to_string()]);
        let output = tokio::time::timeout(std::time::Duration::from_secs(240), clients.output());
        let output = output.await.expect("the clients don't end").unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[tokio::test]
async fn socket_io_works_over_two_endpoints_if_it_is_on_and_only_then() {
    let Some(installed) = Installed::here().await else { return };
    let (_one, first) = installed.server().await;
    let (_two, second) = installed.server().await;
    let endpoints = format!("127.0.0.1:{first}\", \"127.0.0.1:{second}");
    for (sticky, works) in
        [("", false), ("sticky = { by = \"cookie\" }", true), ("sticky = { by = \"address\" }", true)]
    {
        let home = Home::new(&endpoints, "127.0.0.1:9").service(sticky);
        let proxy = home.start().await;
        crate::harness::until("blue is healthy", async || {
            let backend = proxy.backend("blue").await;
            backend.endpoints.iter().all(|endpoint| endpoint.healthy == Some(true)).then_some(())
        })
        .await;
        let clients = installed.clients(proxy.address).await;
        assert_eq!(clients.len(), CLIENTS);
        let failed: Vec<&Value> = clients.iter().filter(|client| !client["error"].is_null()).collect();
        if !works {
            assert!(!failed.is_empty(), "it works without: {clients:?}");
            continue;
        }
        assert!(failed.is_empty(), "{sticky}: {failed:?}");
        for client in &clients {
            let ports = client["ports"].as_array().unwrap();
            assert!(client["upgraded"] == true && ports.iter().all(|port| *port == ports[0]), "{client}");
            assert!(
                !client["cookies"].to_string().contains("uh-endpoint"),
                "the app sees our cookie: {client}"
            );
        }
        if sticky.contains("cookie") {
            let used = |port: u16| clients.iter().any(|client| client["ports"][0] == port);
            assert!(used(first) && used(second), "the load isn't spread");
        }
    }
}
