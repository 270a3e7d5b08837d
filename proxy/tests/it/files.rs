//! Static files of backends: what is served, how, and that it belongs to the active backend.

mod answers;
mod nginx;
mod paths;
mod previous;
mod sending;
mod switching;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::harness::{Home, Proxy, SampleApp};
use crate::http2::clients::{Client, H2C, h2c};
use crate::tls::certificates::{Authority, address, home};
use crate::tls::clients::{Rustls, Secure};
use crate::wire::Wire;

/// The key for the files in the home.
const FILES: &str = "files = \"FILES\"";

/// A proxy that serves files for two sample apps, over plain HTTP, HTTPS and HTTP/2.
pub(crate) struct Site {
    pub(crate) home: Home,
    pub(crate) proxy: Proxy,
    authority: Authority,
    tls: SocketAddr,
    h2c: SocketAddr,
    _apps: (SampleApp, SampleApp),
}

impl Site {
    /// With these keys of the service.
    pub(crate) async fn start(service: &str) -> Self {
        Self::start_with(H2C, service).await
    }

    pub(crate) async fn start_with(server: &str, service: &str) -> Self {
        let authority = Authority::new();
        let pair = authority.issue(&["app.test"]);
        let apps = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
        let addresses = (apps.0.address, apps.1.address);
        let home = home(addresses, &authority, &[("app", &pair)], server, "");
        let root = home.path("app-{backend}/public");
        let home = home.service(&service.replace("FILES", &root.display().to_string()));
        for backend in ["blue", "green"] {
            fs::create_dir_all(home.path(&format!("app-{backend}/public"))).unwrap();
        }
        let proxy = home.start().await;
        proxy.until_healthy().await;
        let (tls, h2c) = (address(&proxy).await, h2c(&proxy).await);
        Self { home, proxy, authority, tls, h2c, _apps: apps }
    }

    /// Where a backend's files are.
    pub(crate) fn root(&self, backend: &str) -> PathBuf {
        self.home.path(&format!("app-{backend}/public"))
    }

    /// Writes a file of a backend.
    pub(crate) fn put(&self, backend: &str, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.root(backend).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) async fn wire(&self) -> Wire {
        Wire::connect(self.proxy.address).await
    }

    /// A connection over TLS.
    async fn secure(&self) -> Secure {
        Rustls::new(&self.authority).connect(self.tls, "app.test").await.unwrap()
    }

    /// An HTTP/2 client.
    async fn http2(&self) -> Client {
        Client::plain(self.h2c).await
    }
}

/// A `GET` with more fields.
fn asking(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n\r\n")
}
