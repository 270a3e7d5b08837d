//! `PUT`, `DELETE` and `POST …/withdraw` of `/v1/services/{s}/backends/{b}`: check → swap → persist → reply, and one
//! audit line each.

use uh_protocol::request::{BackendRequest, Registered, UnsetRequest, WithdrawRequest, Withdrawn};
use uh_protocol::status::BackendStatus;
use uh_protocol::{Address, BackendName, Code, Problem, ServiceName};
use uh_switching::board::{RegisterOrder, RegisterOutcome};
use uh_switching::{Backend, Refusal};

use super::audit::{Audit, Changed, Did, Wait};
use super::control::{Control, internal};
use super::socket::Peer;
use crate::config::MAX_ENDPOINTS;
use crate::fault;

/// The longest version that can be registered, in characters.
const MAX_VERSION_CHARS: usize = 128;

impl Control {
    /// Registers a backend.
    ///
    /// # Errors
    /// If refused; nothing has changed then.
    pub(crate) async fn set_backend(
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
        self.registered(Audit::of_backend(peer, "set_backend", service, backend), done).await
    }

    /// Drops a backend's registration.
    ///
    /// # Errors
    /// If refused; nothing has changed then.
    pub(crate) async fn unset_backend(
        &self,
        service: &str,
        backend: &BackendName,
        request: UnsetRequest,
        peer: Peer,
    ) -> Result<Registered, Problem> {
        let done = self.board.unset_backend(service, backend, request.expect_generation, request.force);
        self.registered(Audit::of_backend(peer, "unset_backend", service, backend), done).await
    }

    async fn registered(
        &self,
        audit: Audit<'_>,
        done: Result<RegisterOutcome, Refusal>,
    ) -> Result<Registered, Problem> {
        let done = done.map_err(|refusal| self.refuse(audit, &refusal))?;
        self.news.backends.notify_one();
        // The state as of now: it may change again before it is on disk.
        let status = self.status_of(audit.service.unwrap_or_default(), &done.backend.name);
        let did = Did {
            changed: Changed::Whether(done.changed),
            generation: Some(done.generation),
            endpoints: Some(&endpoints(&done.backend)),
            version: done.backend.version.as_deref(),
            ..Did::default()
        };
        let persisted = self.settle(Wait::after(done.changed), audit, did).await;
        Ok(Registered {
            backend: status.ok_or_else(|| internal("the service no longer exists"))?,
            changed: done.changed,
            generation: done.generation,
            persisted: persisted.is_ok(),
            persist_error: persisted.error(),
        })
    }

    fn status_of(&self, service: &str, backend: &BackendName) -> Option<BackendStatus> {
        let live = self.board.live();
        let service = live.service(service)?;
        Some(self.backend_status(service, service.backend(backend)?))
    }

    /// Withdraws a standby before it is stopped.
    ///
    /// # Errors
    /// If refused, as for the active backend; nothing has changed then.
    pub(crate) async fn withdraw(
        &self,
        service: &str,
        backend: &BackendName,
        request: WithdrawRequest,
        peer: Peer,
    ) -> Result<Withdrawn, Problem> {
        let done = self.board.withdraw(service, backend, request.expect_generation);
        let audit = Audit::of_backend(peer, "withdraw", service, backend);
        let done = done.map_err(|refusal| self.refuse(audit, &refusal))?;
        fault::point("withdrawn");
        let service: ServiceName = service.parse().map_err(|_| internal("the service name isn't valid"))?;
        let did = Did {
            changed: Changed::Whether(done.changed),
            generation: Some(done.generation),
            requests_in_flight: Some(done.holding.requests),
            tunnels: Some(done.holding.tunnels),
            ..Did::default()
        };
        let persisted = self.settle(Wait::after(done.changed), audit, did).await;
        Ok(Withdrawn {
            service,
            backend: backend.clone(),
            changed: done.changed,
            generation: done.generation,
            requests_in_flight: done.holding.requests,
            tunnels: done.holding.tunnels,
            persisted: persisted.is_ok(),
            persist_error: persisted.error(),
        })
    }
}

fn addresses(endpoints: &[String]) -> Result<Vec<Address>, Problem> {
    if endpoints.is_empty() || endpoints.len() > MAX_ENDPOINTS {
        return Err(invalid(format!("endpoints: give 1 to {MAX_ENDPOINTS} addresses")));
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
    Err(invalid(format!("version: use 1 to {MAX_VERSION_CHARS} characters and no control characters")))
}

fn invalid(detail: String) -> Problem {
    Problem::with_status(Code::InvalidRequest, 422, detail)
}

/// For a log line.
fn endpoints(backend: &Backend) -> String {
    backend.addresses().map(Address::to_string).collect::<Vec<_>>().join(", ")
}
