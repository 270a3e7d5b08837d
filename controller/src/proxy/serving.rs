//! Which backend serves, for messages and for the end of every command.

use std::time::{Duration, Instant};

use uh_protocol::BackendName;

use super::{ProxyError, ProxyService, ServiceView};
use crate::config::Config;
use crate::names::named;

/// How long to wait for a uh-proxy that doesn't answer: a restart takes two seconds, in a container too.
const PROXY_WITHIN: Duration = Duration::from_secs(10);

/// How often to ask it.
const PROXY_POLL: Duration = Duration::from_millis(100);

/// Which backend serves, as uh-proxy has just reported. Only [`ProxyService::serving`] makes one, so a message built from it
/// never shows outdated information.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Serving {
    view: ServiceView,
}

impl ProxyService {
    /// Which backend serves now.
    ///
    /// # Errors
    /// uh-proxy doesn't answer.
    pub(crate) async fn serving(&self) -> Result<Serving, ProxyError> {
        Ok(Serving { view: self.view().await? })
    }

    /// The same, but waits for a uh-proxy that restarts.
    ///
    /// # Errors
    /// uh-proxy doesn't answer in time.
    pub(crate) async fn serving_soon(&self) -> Result<Serving, ProxyError> {
        Ok(Serving { view: self.view_soon().await? })
    }

    /// The current status of the service. Waits for a uh-proxy that restarts.
    ///
    /// # Errors
    /// uh-proxy doesn't answer in time.
    pub(crate) async fn view_soon(&self) -> Result<ServiceView, ProxyError> {
        soon(async || self.view().await).await
    }

    /// Like [`ProxyService::find`], but waits for a uh-proxy that restarts.
    ///
    /// # Errors
    /// uh-proxy doesn't answer in time, or there is no such service.
    pub(crate) async fn find_soon(config: &Config) -> Result<Self, ProxyError> {
        soon(async || Self::find(config).await).await
    }
}

async fn soon<T>(ask: impl AsyncFn() -> Result<T, ProxyError>) -> Result<T, ProxyError> {
    let deadline = Instant::now() + PROXY_WITHIN;
    loop {
        match ask().await {
            Err(error) if error.is_unanswered() && Instant::now() < deadline => {
                tokio::time::sleep(PROXY_POLL).await;
            }
            other => return other,
        }
    }
}

impl Serving {
    /// The status that uh-proxy reported.
    #[must_use]
    pub(crate) fn view(&self) -> &ServiceView {
        &self.view
    }

    /// The active backend.
    #[must_use]
    pub(crate) fn active(&self) -> &BackendName {
        &self.view.service.active
    }

    /// Whether this backend is active.
    #[must_use]
    pub(crate) fn is(&self, backend: &BackendName) -> bool {
        self.view.is_active(backend)
    }

    /// Its version, if known.
    #[must_use]
    pub(crate) fn version(&self) -> Option<String> {
        self.view.version(self.active())
    }

    /// `green (v1.0.1)`
    #[must_use]
    pub(crate) fn name(&self) -> String {
        named(self.active(), self.version().as_deref())
    }

    /// `green (v1.0.1) serves`, or why users aren't served by it.
    #[must_use]
    pub(crate) fn sentence(&self) -> String {
        let name = self.name();
        match (self.unhealthy(), self.view.service.maintenance) {
            (None, false) => format!("{name} serves"),
            (None, true) => {
                format!("{name} is active, but maintenance is on: users get the maintenance page")
            }
            (Some(why), false) => format!("{name} is active, but fails its health checks ({why})"),
            (Some(why), true) => format!(
                "{name} is active, but maintenance is on and it fails its health checks ({why}): users get the maintenance page"
            ),
        }
    }

    /// Why uh-proxy considers it unhealthy, if it does.
    fn unhealthy(&self) -> Option<String> {
        let backend = self.view.backend(self.active()).filter(|backend| backend.healthy == Some(false))?;
        let probe = backend.last_probe.as_ref().and_then(|probe| probe.error.clone());
        Some(probe.unwrap_or_else(|| "no reason given".to_owned()))
    }

    /// Warnings about the active backend, one sentence each.
    #[must_use]
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.view.service.maintenance {
            warnings.push(
                "Maintenance is on: users get the maintenance page until `uh-deploy maintenance off`"
                    .to_owned(),
            );
        }
        if let Some(why) = self.unhealthy() {
            warnings.push(format!("{} fails its health checks: {why}", self.name()));
        }
        if !self.view.status.persisted {
            warnings.push(
                "The current routing isn't on disk: if uh-proxy restarts now, an older backend serves. Free disk space; uh-proxy keeps retrying"
                    .to_owned(),
            );
        }
        warnings
    }
}
