//! Pages that were loaded before a switch: their server actions, and requests that name their version. Their assets are in
//! `files/previous.rs`.

mod actions;
mod double;
mod named;
mod nextjs;

use uh_protocol::request::BackendRequest;

use crate::harness::{Proxy, app, backend};

/// Registers a backend with a version, as a deploy does.
async fn register(proxy: &Proxy, name: &str, address: impl ToString, version: &str) {
    let request = BackendRequest {
        endpoints: vec![address.to_string()],
        version: Some(version.to_owned()),
        expect_generation: None,
        force: false,
    };
    proxy.client.set_backend(&app(), &backend(name), &request).await.unwrap();
}
