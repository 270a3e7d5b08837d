//! What must precede every stop: withdraw, then drain.

use std::time::Duration;

use uh_protocol::request::WithdrawRequest;
use uh_protocol::{Address, BackendName};

use super::{ProxyError, ProxyService, ServiceView};
use crate::runtime::{InstanceId, Runtime, RuntimeError, State};

/// How often a withdrawal is retried because the routing has changed meanwhile.
const ROUNDS: u32 = 20;

/// What happens while a backend is taken out of service.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WithdrawalProgress<'a> {
    /// It is withdrawn, but that isn't on uh-proxy's disk yet.
    Unwritten { backend: &'a BackendName, error: &'a str },
    /// The wait for its requests begins.
    Waiting { held: u64, backend: &'a BackendName },
    /// Some are left, and are cut with its instance.
    StillInFlight { left: u64, backend: &'a BackendName, after: Duration },
}

/// Receives what happens while a backend is taken out of service.
pub(crate) type WithdrawalListener<'a> = &'a (dyn Fn(WithdrawalProgress<'_>) + 'a);

/// A backend that receives no requests and that nothing can switch to, so its instances may be stopped. This is the
/// only way to stop one, so that a backend that has become active meanwhile is never stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutOfService {
    backend: BackendName,
    generation: u64,
}

impl OutOfService {
    /// Withdraws a backend, if the routing is unchanged since the caller's look.
    ///
    /// # Errors
    /// The routing has changed, the backend is active, or uh-proxy doesn't answer. Then nothing may be stopped.
    pub(crate) async fn withdraw(
        proxy: &ProxyService,
        backend: &BackendName,
        generation: u64,
        listener: WithdrawalListener<'_>,
    ) -> Result<Self, ProxyError> {
        let request = WithdrawRequest { expect_generation: Some(generation) };
        let withdrawn = proxy.client.withdraw(&proxy.service, backend, &request).await?;
        if let Some(error) = &withdrawn.persist_error {
            listener(WithdrawalProgress::Unwritten { backend, error });
        }
        Ok(Self { backend: backend.clone(), generation: withdrawn.generation })
    }

    /// Withdraws a standby, even if the routing changes meanwhile.
    ///
    /// # Errors
    /// [`ProxyError::Overtaken`]: it is active. Or uh-proxy doesn't answer.
    pub(crate) async fn withdraw_standby(
        proxy: &ProxyService,
        backend: &BackendName,
        listener: WithdrawalListener<'_>,
    ) -> Result<Self, ProxyError> {
        let mut rounds = 0;
        loop {
            let view = proxy.view().await?;
            if view.is_active(backend) {
                let generation = view.generation;
                return Err(ProxyError::Overtaken(format!("{backend} is active (generation {generation})")));
            }
            match Self::withdraw(proxy, backend, view.generation, listener).await {
                Err(e) if e.is_overtaken() && rounds < ROUNDS => rounds += 1,
                other => return other,
            }
        }
    }

    /// uh-proxy has other endpoints for this backend, so what listens on these receives no requests.
    #[must_use]
    pub(crate) fn elsewhere(
        view: &ServiceView,
        backend: &BackendName,
        endpoints: &[Address],
    ) -> Option<Self> {
        (!view.has_endpoints(backend, endpoints))
            .then(|| Self { backend: backend.clone(), generation: view.generation })
    }

    /// uh-proxy doesn't answer, but this backend was withdrawn before its instance was started and hasn't been
    /// registered since.
    #[must_use]
    pub(crate) fn since_before_its_start(backend: &BackendName, generation: u64) -> Self {
        Self { backend: backend.clone(), generation }
    }

    /// The generation of the withdrawal.
    #[must_use]
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Waits for the backend's exchanges. Those left after the timeout end with its instance.
    ///
    /// # Errors
    /// It has been registered again, or uh-proxy doesn't answer. Then nothing may be stopped.
    pub(crate) async fn drain(
        &self,
        proxy: &ProxyService,
        timeout: Duration,
        listener: WithdrawalListener<'_>,
    ) -> Result<(), ProxyError> {
        let view = proxy.view().await?;
        let held = view.backend(&self.backend).map_or(0, |b| b.requests_in_flight + b.tunnels);
        if held == 0 {
            return Ok(());
        }
        listener(WithdrawalProgress::Waiting { held, backend: &self.backend });
        let drained = proxy.drain(&self.backend, timeout).await?;
        let left = drained.remaining.total();
        if left > 0 {
            listener(WithdrawalProgress::StillInFlight { left, backend: &self.backend, after: timeout });
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
    pub(crate) async fn stop(
        &self,
        runtime: &dyn Runtime,
        instance: &InstanceId,
        timeout: Duration,
    ) -> Result<State, RuntimeError> {
        runtime.stop(instance, timeout).await
    }
}
