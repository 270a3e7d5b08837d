//! uh-proxy, as uh-deploy uses it: one of its services.
//!
//! Only a [`Serving`] reports which backend serves, and it is only made from a fresh status. Nothing is stopped
//! without an [`OutOfService`], which takes a withdrawal.

mod out_of_service;
mod serving;

pub(crate) use out_of_service::{OutOfService, WithdrawalProgress};
pub(crate) use serving::Serving;
use uh_protocol::client::{Client, ClientError};
use uh_protocol::request::{
    BackendRequest, DrainRequest, Drained, ReleaseRequest, Released, SplitReply, SplitRequest, SwitchRequest,
    Switched,
};
use uh_protocol::status::{BackendStatus, Role, ServiceStatus, SplitStatus, Status};
use uh_protocol::{Address, BackendName, Code, ServiceName};

use crate::config::Config;
use crate::time::same_switch;

/// One service of uh-proxy.
#[derive(Debug, Clone)]
pub(crate) struct ProxyService {
    /// The admin client.
    pub client: Client,
    pub service: ServiceName,
}

/// The current status of the service.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ServiceView {
    /// uh-proxy's generation.
    pub generation: u64,
    pub service: ServiceStatus,
    /// The whole reply.
    pub status: Status,
}

/// What must not change in a service between an operation's first look and its switch. The generation counts changes
/// of all services, so it can't tell this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExpectedRouting {
    active: BackendName,
    last_switch: Option<String>,
    endpoints: Vec<String>,
    version: Option<String>,
}

impl ExpectedRouting {
    /// The same, with the candidate registered.
    #[must_use]
    pub(crate) fn with_registered(self, endpoints: &[Address], version: Option<&str>) -> Self {
        Self { endpoints: texts(endpoints), version: version.map(str::to_owned), ..self }
    }

    /// Whether nothing has changed. If no version is registered, uh-proxy shows what the app reports, which by now
    /// may be the candidate's version or none.
    #[must_use]
    pub(crate) fn holds(&self, now: Self, our_version: Option<&str>) -> bool {
        let ours = now.version.is_none() || now.version.as_deref() == our_version;
        let version = if ours { self.version.clone() } else { now.version.clone() };
        // A restarted uh-proxy knows the same switch less exactly.
        let same = same_switch(self.last_switch.as_deref(), now.last_switch.as_deref());
        let last_switch = if same { self.last_switch.clone() } else { now.last_switch.clone() };
        *self == Self { version, last_switch, ..now }
    }
}

/// The result of a registration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Registration {
    /// The generation now.
    pub generation: u64,
    /// The split at this generation.
    pub split: Option<SplitStatus>,
    /// Why it isn't on disk yet.
    pub persist_error: Option<String>,
}

/// Why uh-proxy couldn't be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    /// The call failed or was refused.
    #[error(transparent)]
    Call(#[from] ClientError),
    /// There is no such service, or it isn't clear which one is meant.
    #[error("{0}")]
    Service(String),
    /// The routing was changed by another command.
    #[error("{0}")]
    Overtaken(String),
}

impl ProxyError {
    /// Whether the routing was changed by another command.
    #[must_use]
    pub(crate) fn is_overtaken(&self) -> bool {
        match self {
            Self::Overtaken(_) => true,
            Self::Call(ClientError::Problem(problem)) if problem.code == Code::Conflict => true,
            // The backend has become active since the last look.
            other => other.is_in_use(),
        }
    }

    /// Whether uh-proxy refused because the backend gets requests: it is active, or a split sends it a share.
    #[must_use]
    pub(crate) fn is_in_use(&self) -> bool {
        matches!(self, Self::Call(ClientError::Problem(p)) if p.code == Code::BackendActive)
    }

    /// Whether uh-proxy didn't answer, or broke off.
    #[must_use]
    pub(crate) fn is_unanswered(&self) -> bool {
        matches!(self, Self::Call(error) if !matches!(error, ClientError::Problem(_)))
    }

    /// Whether the call never reached uh-proxy: then nothing was done.
    #[must_use]
    pub(crate) fn is_unsent(&self) -> bool {
        matches!(self, Self::Call(ClientError::NoProxy { .. } | ClientError::NoPermission { .. }))
    }

    /// Whether uh-proxy refused because the backend isn't healthy.
    #[must_use]
    pub(crate) fn is_unhealthy(&self) -> bool {
        matches!(self, Self::Call(ClientError::Problem(p)) if p.code == Code::BackendUnhealthy)
    }
}

impl ServiceView {
    /// A backend of the service.
    #[must_use]
    pub(crate) fn backend(&self, name: &BackendName) -> Option<&BackendStatus> {
        self.service.backends.iter().find(|backend| backend.name == *name)
    }

    /// Whether this backend receives new requests.
    #[must_use]
    pub(crate) fn is_active(&self, name: &BackendName) -> bool {
        self.service.active == *name
    }

    /// Whether this backend is out of service until it is registered again.
    #[must_use]
    pub(crate) fn is_withdrawn(&self, name: &BackendName) -> bool {
        self.backend(name).is_some_and(|backend| backend.role == Role::Withdrawn)
    }

    /// The split that gives this backend a share of the clients, if there is one.
    #[must_use]
    pub(crate) fn split_to(&self, name: &BackendName) -> Option<&SplitStatus> {
        self.service.split.as_ref().filter(|split| split.to == *name)
    }

    /// What an operation that would switch to this backend relies on.
    #[must_use]
    pub(crate) fn expected_routing(&self, to: &BackendName) -> ExpectedRouting {
        let backend = self.backend(to);
        let endpoints = backend.iter().flat_map(|backend| &backend.endpoints);
        ExpectedRouting {
            active: self.service.active.clone(),
            last_switch: self.service.last_switch.clone(),
            endpoints: endpoints.map(|endpoint| endpoint.address.clone()).collect(),
            version: backend.and_then(|backend| backend.version.clone()),
        }
    }

    /// Whether uh-proxy has exactly these endpoints for a backend.
    #[must_use]
    pub(crate) fn has_endpoints(&self, name: &BackendName, endpoints: &[Address]) -> bool {
        let Some(backend) = self.backend(name) else { return false };
        backend.endpoints.iter().map(|endpoint| endpoint.address.clone()).eq(texts(endpoints))
    }

    /// The version of a backend: the registered one, or else the one its app reports.
    #[must_use]
    pub(crate) fn version(&self, name: &BackendName) -> Option<String> {
        let backend = self.backend(name)?;
        let reported = backend.last_probe.as_ref().and_then(|probe| probe.version.clone());
        backend.version.clone().or(reported)
    }
}

fn texts(endpoints: &[Address]) -> Vec<String> {
    endpoints.iter().map(ToString::to_string).collect()
}

impl ProxyService {
    /// Finds the service that the configuration names, or the only one.
    ///
    /// # Errors
    /// uh-proxy doesn't answer, or there is no such service.
    pub(crate) async fn find(config: &Config) -> Result<Self, ProxyError> {
        let client = Client::new(&config.deploy.admin_socket);
        let status = client.status().await?;
        let names: Vec<&str> = status.services.iter().map(|service| service.name.as_str()).collect();
        let service = match (&config.deploy.service, status.services.as_slice()) {
            (Some(wanted), services) if services.iter().any(|service| service.name == *wanted) => {
                wanted.clone()
            }
            (None, [only]) => only.name.clone(),
            (Some(wanted), _) => {
                let message = format!(
                    "uh-proxy has no service {wanted}, only {}: fix `deploy.service`",
                    names.join(", ")
                );
                return Err(ProxyError::Service(message));
            }
            (None, _) => {
                let message = format!(
                    "uh-proxy has several services: set `deploy.service` to one of {}",
                    names.join(", ")
                );
                return Err(ProxyError::Service(message));
            }
        };
        Ok(Self { client, service })
    }

    /// The current status of the service.
    ///
    /// # Errors
    /// uh-proxy doesn't answer.
    pub(crate) async fn view(&self) -> Result<ServiceView, ProxyError> {
        let status = self.client.status().await?;
        let service = status.services.iter().find(|service| service.name == self.service).cloned();
        let service = service.ok_or_else(|| {
            ProxyError::Service(format!("uh-proxy no longer has a service {}", self.service))
        })?;
        Ok(ServiceView { generation: status.generation, service, status })
    }

    /// Registers a backend's endpoints and version, which also puts it back into service.
    ///
    /// # Errors
    /// uh-proxy refused, or the routing was changed by another command.
    pub(crate) async fn register(
        &self,
        backend: &BackendName,
        endpoints: &[Address],
        version: Option<&str>,
        generation: u64,
    ) -> Result<Registration, ProxyError> {
        let before = self.view().await?.expected_routing(backend);
        let request = BackendRequest {
            endpoints: texts(endpoints),
            version: version.map(str::to_owned),
            expect_generation: Some(generation),
            force: false,
        };
        let registered = self.client.set_backend(&self.service, backend, &request).await?;
        let after = self.view().await?;
        let known = after.backend(backend).and_then(|backend| backend.version.clone());
        let ours = version.or(known.as_deref());
        if !before.with_registered(endpoints, version).holds(after.expected_routing(backend), ours) {
            return Err(ProxyError::Overtaken(format!(
                "the routing was changed in the meantime: {} is active (generation {})",
                after.service.active, after.generation
            )));
        }
        Ok(Registration {
            generation: after.generation,
            split: after.service.split,
            persist_error: registered.persist_error,
        })
    }

    /// Makes a backend active.
    ///
    /// # Errors
    /// uh-proxy refused, or the routing was changed by another command; then nothing was switched.
    pub(crate) async fn switch(&self, request: &SwitchRequest) -> Result<Switched, ProxyError> {
        Ok(self.client.switch(&self.service, request).await?)
    }

    /// Gives a backend a share of the clients, changes it, or ends it.
    ///
    /// # Errors
    /// uh-proxy refused, or the routing was changed by another command; then nothing was changed.
    pub(crate) async fn split(&self, request: &SplitRequest) -> Result<SplitReply, ProxyError> {
        Ok(self.client.split(&self.service, request).await?)
    }

    /// Makes a backend of each of these services active, all at once.
    ///
    /// # Errors
    /// uh-proxy refused, or the routing was changed by another command; then nothing was switched.
    pub(crate) async fn release(&self, request: &ReleaseRequest) -> Result<Released, ProxyError> {
        Ok(self.client.release(request).await?)
    }

    /// Waits for a standby's exchanges to finish.
    ///
    /// # Errors
    /// uh-proxy refused, because the backend is active.
    pub(crate) async fn drain(
        &self,
        backend: &BackendName,
        timeout: std::time::Duration,
    ) -> Result<Drained, ProxyError> {
        let timeout_ms = Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        Ok(self.client.drain(&self.service, backend, &DrainRequest { timeout_ms, cut: None }).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_could_not_connect_was_never_sent() {
        let path = std::path::PathBuf::from("admin.sock");
        let error = |kind: std::io::ErrorKind| std::io::Error::from(kind);
        let refused = error(std::io::ErrorKind::ConnectionRefused);
        let forbidden = error(std::io::ErrorKind::PermissionDenied);
        assert!(ProxyError::Call(ClientError::NoProxy { path: path.clone(), source: refused }).is_unsent());
        assert!(
            ProxyError::Call(ClientError::NoPermission { path: path.clone(), source: forbidden }).is_unsent()
        );
        let broken = error(std::io::ErrorKind::BrokenPipe).into();
        assert!(!ProxyError::Call(ClientError::Broken { path, source: broken }).is_unsent());
    }

    #[test]
    fn only_what_our_own_candidate_reports_is_not_a_change() {
        let expected_routing =
            |active: &str, last_switch: &str, port: u16, version: Option<&str>| ExpectedRouting {
                active: active.parse().unwrap(),
                last_switch: Some(last_switch.to_owned()),
                endpoints: vec![format!("127.0.0.1:{port}")],
                version: version.map(str::to_owned),
            };
        let before = expected_routing("blue", "2026-11-25T10:00:00.5Z", 3009, Some("1"));
        for version in [Some("1"), Some("2"), None] {
            assert!(
                before.holds(expected_routing("blue", "2026-11-25T10:00:00.5Z", 3009, version), Some("2")),
                "{version:?}"
            );
        }
        // After a restart, uh-proxy only knows that switch to the second.
        assert!(before.holds(expected_routing("blue", "2026-11-25T10:00:00Z", 3009, Some("1")), Some("2")));
        for changed in [
            expected_routing("green", "2026-11-25T10:00:00.5Z", 3009, Some("1")),
            expected_routing("blue", "2026-11-25T10:01:00.5Z", 3009, Some("1")),
            expected_routing("blue", "2026-11-25T10:00:00.5Z", 3010, Some("1")),
            expected_routing("blue", "2026-11-25T10:00:00.5Z", 3009, Some("3")),
        ] {
            assert!(!before.holds(changed.clone(), Some("2")), "{changed:?}");
        }
    }
}
