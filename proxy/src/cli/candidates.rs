//! Names that a shell may complete: those of the running uh-proxy. Where none answers at once, there are none.

use std::path::PathBuf;
use std::time::Duration;

use clap_complete::engine::CompletionCandidate;
use uh_protocol::client::Client;
use uh_protocol::status::ServiceStatus;
use uh_settings::shell;

/// How long a shell may wait for names after the Tab key.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// The services' names.
pub(super) fn services() -> Vec<CompletionCandidate> {
    shell::candidates(running().into_iter().map(|service| service.name))
}

/// The names of all backends, or of those of the services in the line.
pub(super) fn backends() -> Vec<CompletionCandidate> {
    shell::candidates(backend_names())
}

/// Where a share of the clients may go.
pub(super) fn split_targets() -> Vec<CompletionCandidate> {
    shell::candidates(backend_names().into_iter().chain(["off".to_owned()]))
}

fn backend_names() -> Vec<String> {
    let wanted = shell::option_in_line("--service");
    let wanted = wanted.as_ref().map(|wanted| wanted.to_string_lossy());
    let asked = |service: &ServiceStatus| {
        wanted.as_ref().is_none_or(|wanted| wanted.split(',').any(|name| name == service.name.as_str()))
    };
    let mut names: Vec<_> = running()
        .into_iter()
        .filter(asked)
        .flat_map(|service| service.backends)
        .map(|backend| backend.name.to_string())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn running() -> Vec<ServiceStatus> {
    let socket = shell::option_in_line("--admin-socket")
        .or_else(|| std::env::var_os("UH_PROXY_ADMIN_SOCKET"))
        .map_or_else(|| uh_protocol::DEFAULT_ADMIN_SOCKET.into(), PathBuf::from);
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let client = Client::new(socket);
    let status = runtime.block_on(async { tokio::time::timeout(ANSWER_TIME, client.status()).await });
    status.ok().and_then(Result::ok).map(|status| status.services).unwrap_or_default()
}
