//! Names that a shell may complete: those of the running uh-proxy. Where none answers at once, there are none.

use std::path::PathBuf;
use std::time::Duration;

use clap_complete::engine::CompletionCandidate;
use uh_protocol::client::Client;
use uh_protocol::status::ServiceStatus;
use uh_settings::shell;

/// Somebody waits with a finger on the Tab key.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// The services' names.
pub(super) fn services() -> Vec<CompletionCandidate> {
    shell::candidates(running().into_iter().map(|service| service.name))
}

/// The names of all backends, or of those of the service in the line.
pub(super) fn backends() -> Vec<CompletionCandidate> {
    let wanted = shell::option_in_line("--service");
    let asked =
        |service: &ServiceStatus| wanted.as_ref().is_none_or(|wanted| *wanted == *service.name.as_str());
    let mut names: Vec<_> = running()
        .into_iter()
        .filter(asked)
        .flat_map(|service| service.backends)
        .map(|backend| backend.name)
        .collect();
    names.sort_unstable();
    names.dedup();
    shell::candidates(names)
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
