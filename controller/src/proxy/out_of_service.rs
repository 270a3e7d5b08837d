//! What must precede every stop: withdraw, then drain.

use std::time::Duration;

use uh_protocol::request::WithdrawRequest;
use uh_protocol::{Address, BackendName};

use super::{ProxyError, ProxyService, ServiceView};
use crate::report::Report;
use crate::runtime::{InstanceId, Runtime, RuntimeError, State};
use crate::time::span;

/// How often a withdrawal is retried because the routing has changed meanwhile.
const ROUNDS: u32 = 20;

/// A backend that receives no requests and that nothing can switch to, so its instances may be stopped. This is the
/// only way to stop one, so that a backend that has become active meanwhile is never stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutOfService {
    backend: BackendName,
    generation: u64,
}

impl OutOfService {
    /// Withdraws a backend, if the routing is unchanged since the caller's look.
    ///
    /// # Errors
    /// The routing has changed, the backend is active, or uh-proxy doesn't answer. Then nothing may be stopped.
    pub async fn withdraw(
        proxy: &ProxyService,
        backend: &BackendName,
        generation: u64,
        report: &Report,
    ) -> Result<Self, ProxyError> {
        let request = WithdrawRequest { expect_generation: Some(generation) };
        let withdrawn = proxy.client.withdraw(&proxy.service, backend, &request).await?;
        if let Some(error) = &withdrawn.persist_error {
            report.warn(&format!("{backend} is withdrawn, but that isn't on disk yet: {error}"));
        }
        Ok(Self { backend: backend.clone(), generation: withdrawn.generation })
    }

    /// Withdraws a standby, even if the routing changes meanwhile.
    ///
    /// # Errors
    /// [`ProxyError::Overtaken`]: it is active. Or uh-proxy doesn't answer.
    pub async fn withdraw_standby(
        proxy: &ProxyService,
        backend: &BackendName,
        report: &Report,
    ) -> Result<Self, ProxyError> {
        let mut rounds = 0;
        loop {
            let view = proxy.view().await?;
            if view.is_active(backend) {
                let generation = view.generation;
                return Err(ProxyError::Overtaken(format!("{backend} is active (generation {generation})")));
            }
            match Self::withdraw(proxy, backend, view.generation, report).await {
                Err(e) if e.is_overtaken() && rounds < ROUNDS => rounds += 1,
                other => return other,
            }
        }
    }

    /// uh-proxy has other endpoints for this backend, so what listens on these receives no requests.
    #[must_use]
    pub fn elsewhere(view: &ServiceView, backend: &BackendName, endpoints: &[Address]) -> Option<Self> {
        (!view.has_endpoints(backend, endpoints))
            .then(|| Self { backend: backend.clone(), generation: view.generation })
    }

    /// uh-proxy doesn't answer, but this backend was withdrawn before its instance was started and hasn't been
    /// registered since.
    #[must_use]
    pub fn since_before_its_start(backend: &BackendName, generation: u64) -> Self {
        Self { backend: backend.clone(), generation }
    }

    /// The generation of the withdrawal.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Waits for the backend's exchanges. Those left after the timeout end with its instance.
    ///
    /// # Errors
    /// It has been registered again, or uh-proxy doesn't answer. Then nothing may be stopped.
    pub async fn drain(
        &self,
        proxy: &ProxyService,
        timeout: Duration,
        report: &Report,
    ) -> Result<(), ProxyError> {
        let view = proxy.view().await?;
        let held = view.backend(&self.backend).map_or(0, |b| b.requests_in_flight + b.tunnels);
        if held == 0 {
            return Ok(());
        }
        report.line(&format!("Waiting for {held} requests in flight on {}", self.backend));
        let drained = proxy.drain(&self.backend, timeout).await?;
        let left = drained.remaining.total();
        if left > 0 {
            report.warn(&format!(
                "{left} requests are still in flight on {} after {}; stopping it cuts them",
                self.backend,
                span(timeout)
            ));
        }
        if proxy.view().await?.is_withdrawn(&self.backend) {
            return Ok(());
        }
        Err(ProxyError::Overtaken(format!("{} was registered again by another command", self.backend)))
    }

    /// Stops an instance of the backend.
    ///
    /// # Errors
    /// It is still running.
    pub async fn stop(
        &self,
        runtime: &dyn Runtime,
        instance: &InstanceId,
        timeout: Duration,
    ) -> Result<State, RuntimeError> {
        runtime.stop(instance, timeout).await
    }
}
