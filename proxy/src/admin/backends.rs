//! `PUT`, `DELETE` and `POST …/withdraw` of `/v1/services/{s}/backends/{b}`: check → swap → persist → reply, and one
//! audit line each.

use uh_protocol::request::{BackendRequest, Registered, UnsetRequest, WithdrawRequest, Withdrawn};
use uh_protocol::{BackendName, Code, Problem, ServiceName};

use super::control::{Control, cut, internal};
use super::socket::Peer;
use crate::config::MAX_ENDPOINTS;
use crate::fault;
use crate::switching::board::{RegisterOrder, Registration};
use crate::switching::{Address, Backend, Refusal};

/// The longest version that can be registered, in characters.
const MAX_VERSION_CHARS: usize = 128;

impl Control {
    /// Registers a backend.
    ///
    /// # Errors
    /// Refused; then nothing has changed.
    pub async fn set_backend(
        &self,
        service: &str,
        backend: &BackendName,
        request: BackendRequest,
        peer: Peer,
    ) -> Result<Registered, Problem> {
        let addresses = addresses(&request.endpoints)?;
        let version = request.version.as_deref();
        check_version(version)?;
        let order = RegisterOrder {
            addresses: &addresses,
            version,
            expect_generation: request.expect_generation,
            force: request.force,
        };
        let done = self.board.set_backend(service, backend, &order);
        self.registered("set_backend", service, backend, done, peer).await
    }

    /// Drops a backend's registration.
    ///
    /// # Errors
    /// Refused; then nothing has changed.
    pub async fn unset_backend(
        &self,
        service: &str,
        backend: &BackendName,
        request: UnsetRequest,
        peer: Peer,
    ) -> Result<Registered, Problem> {
        let done = self.board.unset_backend(service, backend, request.expect_generation, request.force);
        self.registered("unset_backend", service, backend, done, peer).await
    }

    async fn registered(
        &self,
        action: &str,
        service: &str,
        backend: &BackendName,
        done: Result<Registration, Refusal>,
        peer: Peer,
    ) -> Result<Registered, Problem> {
        let done = done.map_err(|refusal| self.refused(action, service, backend, &refusal, peer))?;
        self.news.backends.notify_one();
        // As it is now: by the time it is on disk, somebody may have changed it again.
        let snapshot = self.board.snapshot();
        let status = snapshot.service(service).map(|state| self.backend_status(state, &done.backend));
        drop(snapshot);
        let persisted = self.persist_change(done.changed).await;
        tracing::info!(target: "audit", %peer, action, service = cut(service), %backend,
            endpoints = endpoints(&done.backend), version = done.backend.version.as_deref(), changed = done.changed,
            generation = done.generation, persisted = persisted.is_ok(), result = "done");
        Ok(Registered {
            backend: status.ok_or_else(|| internal("the service is gone"))?,
            changed: done.changed,
            generation: done.generation,
            persisted: persisted.is_ok(),
            persist_error: persisted.err(),
        })
    }

    /// Withdraws a standby before somebody stops it.
    ///
    /// # Errors
    /// Refused, as for the active backend; then nothing has changed.
    pub async fn withdraw(
        &self,
        service: &str,
        backend: &BackendName,
        request: WithdrawRequest,
        peer: Peer,
    ) -> Result<Withdrawn, Problem> {
        let done = self.board.withdraw(service, backend, request.expect_generation);
        let done = done.map_err(|refusal| self.refused("withdraw", service, backend, &refusal, peer))?;
        fault::point("withdrawn");
        let service: ServiceName = service.parse().map_err(|_| internal("the service's name is odd"))?;
        let persisted = self.persist_change(done.changed).await;
        tracing::info!(target: "audit", %peer, action = "withdraw", %service, %backend, changed = done.changed,
            generation = done.generation, requests_in_flight = done.holding.requests,
            tunnels = done.holding.tunnels, persisted = persisted.is_ok(), result = "done");
        Ok(Withdrawn {
            service,
            backend: backend.clone(),
            changed: done.changed,
            generation: done.generation,
            requests_in_flight: done.holding.requests,
            tunnels: done.holding.tunnels,
            persisted: persisted.is_ok(),
            persist_error: persisted.err(),
        })
    }
}

fn addresses(endpoints: &[String]) -> Result<Vec<Address>, Problem> {
    if endpoints.is_empty() || endpoints.len() > MAX_ENDPOINTS {
        return Err(invalid(format!("endpoints: write 1 to {MAX_ENDPOINTS} addresses")));
    }
    let addresses: Result<Vec<Address>, _> = endpoints.iter().map(|text| text.parse()).collect();
    addresses.map_err(|e| invalid(format!("endpoints: {e}")))
}

fn check_version(version: Option<&str>) -> Result<(), Problem> {
    let fits =
        |v: &str| !v.is_empty() && v.chars().count() <= MAX_VERSION_CHARS && !v.chars().any(char::is_control);
    if version.is_none_or(fits) {
        return Ok(());
    }
    Err(invalid(format!(
        "version: write 1 to {MAX_VERSION_CHARS} characters, none of them control characters"
    )))
}

fn invalid(detail: String) -> Problem {
    Problem::with_status(Code::InvalidRequest, 422, detail)
}

/// For a log line.
fn endpoints(backend: &Backend) -> String {
    let addresses: Vec<String> =
        backend.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    addresses.join(", ")
}
