//! What must come before every stop: withdraw, then drain.

use std::time::Duration;

use uh_protocol::BackendName;
use uh_protocol::request::WithdrawRequest;

use super::{Front, FrontError, View};
use crate::report::Report;
use crate::runtime::{Endpoint, InstanceId, Runtime, RuntimeError, State};
use crate::time::span;

/// How often a withdrawal is tried again because the routing changes under it.
const ROUNDS: u32 = 20;

/// A backend of which nobody can be served, and to which nobody can switch: its instances may be stopped. This is the
/// only way to stop one, so that nothing which somebody has made active meanwhile is ever stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutOfService {
    backend: BackendName,
    generation: u64,
}

impl OutOfService {
    /// Withdraws a backend, if the routing is still what the caller has looked at.
    ///
    /// # Errors
    /// It has changed, the backend is active, or nobody answers. Then nothing may be stopped.
    pub async fn withdraw(
        front: &Front,
        backend: &BackendName,
        generation: u64,
        report: &Report,
    ) -> Result<Self, FrontError> {
        let request = WithdrawRequest { expect_generation: Some(generation) };
        let withdrawn = front.client.withdraw(&front.service, backend, &request).await?;
        if let Some(error) = &withdrawn.persist_error {
            report.warn(&format!("{backend} is withdrawn, but that isn't on disk yet: {error}"));
        }
        Ok(Self { backend: backend.clone(), generation: withdrawn.generation })
    }

    /// Withdraws a standby, whatever else changes meanwhile.
    ///
    /// # Errors
    /// [`FrontError::Overtaken`]: it is active. Or nobody answers.
    pub async fn withdraw_standby(
        front: &Front,
        backend: &BackendName,
        report: &Report,
    ) -> Result<Self, FrontError> {
        let mut rounds = 0;
        loop {
            let view = front.view().await?;
            if view.is_active(backend) {
                let generation = view.generation;
                return Err(FrontError::Overtaken(format!("{backend} is active (generation {generation})")));
            }
            match Self::withdraw(front, backend, view.generation, report).await {
                Err(e) if e.is_overtaken() && rounds < ROUNDS => rounds += 1,
                other => return other,
            }
        }
    }

    /// The front door sends this backend's requests elsewhere than to these endpoints: what listens there is nobody's.
    #[must_use]
    pub fn elsewhere(view: &View, backend: &BackendName, endpoints: &[Endpoint]) -> Option<Self> {
        (!view.has_endpoints(backend, endpoints))
            .then(|| Self { backend: backend.clone(), generation: view.generation })
    }

    /// The front door does not answer, but this backend was withdrawn before its instance was started, and has not been
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

    /// Waits for what the backend still holds. What is left after that ends with its instance.
    ///
    /// # Errors
    /// It has been registered again and made active, or nobody answers. Then nothing may be stopped.
    pub async fn drain(&self, front: &Front, timeout: Duration, report: &Report) -> Result<(), FrontError> {
        let view = front.view().await?;
        let held = view.backend(&self.backend).map_or(0, |b| b.requests_in_flight + b.tunnels);
        if held == 0 {
            return Ok(());
        }
        report.line(&format!("{} still holds {held} exchanges: waiting for them", self.backend));
        let drained = front.drain(&self.backend, timeout).await?;
        let left = drained.remaining.total();
        if left > 0 {
            report.warn(&format!(
                "{left} exchanges are still open on {} after {}; they end with it",
                self.backend,
                span(timeout)
            ));
        }
        if front.view().await?.is_withdrawn(&self.backend) {
            return Ok(());
        }
        Err(FrontError::Overtaken(format!("{} was registered again by somebody else", self.backend)))
    }

    /// Stops an instance of the backend.
    ///
    /// # Errors
    /// It still runs.
    pub async fn stop(
        &self,
        runtime: &dyn Runtime,
        instance: &InstanceId,
        timeout: Duration,
    ) -> Result<State, RuntimeError> {
        runtime.stop(instance, timeout).await
    }
}
