//! The uh-proxy that a client command calls, and the service it is for.

use std::future::Future;

use anyhow::Context as _;
use uh_protocol::ServiceName;
use uh_protocol::client::Client;

use super::args::{ClientArgs, ServiceArgs};
use super::exit::Failed;

/// The client for the given admin socket.
pub(super) fn client(args: &ClientArgs) -> Client {
    Client::new(&args.admin_socket)
}

/// Runs one call to completion.
pub(super) fn call<T>(future: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the client")?.block_on(future)
}

/// The given service, or the only one there is.
pub(super) async fn service(client: &Client, args: &ServiceArgs) -> Result<ServiceName, Failed> {
    if let Some(name) = &args.service {
        return Ok(name.clone());
    }
    let mut names: Vec<ServiceName> = client.status().await?.services.into_iter().map(|s| s.name).collect();
    match (names.pop(), names.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(last), false) => {
            names.push(last);
            let names: Vec<&str> = names.iter().map(ServiceName::as_str).collect();
            Err(Failed::usage(format!(
                "several services are configured: pass --service with one of {}",
                names.join(", ")
            )))
        }
        (None, _) => Err(Failed::usage("uh-proxy has no service".to_owned())),
    }
}
