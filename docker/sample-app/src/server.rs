//! The listener, and the state shared by all requests. Called by `main` and by tests that run the app in their own
//! process. `uh_app_shim` accepts, serves and drains.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::net::TcpListener;
use uh_app_shim::drain::Drain;
use uh_app_shim::health::{AppIdentity, HealthReporter};

use crate::routes;
use crate::settings::Settings;

/// The most connections: more than any demo or test opens. Others wait to be accepted.
const CONNECTIONS_MAX: usize = 20_000;

/// A bound listener, not yet accepting.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
    app: Arc<App>,
}

impl Server {
    /// Binds. The caller waits for `settings.start_delay`.
    pub async fn bind(settings: Settings) -> io::Result<Self> {
        let listener = TcpListener::bind(settings.address).await?;
        let local_addr = listener.local_addr()?;
        Ok(Self { listener, local_addr, app: Arc::new(App::new(settings)) })
    }

    /// Binds to a free port, with these variables and no others: for tests that run the app in their own process.
    pub async fn bind_free(variables: &[(&str, &str)]) -> io::Result<Self> {
        let find =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into());
        let settings =
            Settings::from_lookup(|name| if name == "PORT" { Some("0".into()) } else { find(name) });
        Self::bind(settings.map_err(io::Error::other)?).await
    }

    /// The bound address, with the actual port.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `stop` is ready, then starts the drain, closes the listener and returns the drain. Requests in
    /// flight continue in their own tasks.
    pub async fn serve_until<T>(self, stop: impl Future<Output = T>) -> Arc<Drain> {
        let Self { listener, app, .. } = self;
        let (drain, drain_timeout) = (Arc::clone(&app.drain), app.settings.drain_timeout);
        let handler = move |request, _| {
            let app = Arc::clone(&app);
            async move { routes::answer(&app, request).await }
        };
        let serving = uh_app_shim::server::serve(listener, Arc::clone(&drain), CONNECTIONS_MAX, handler);
        let stopping = async {
            stop.await;
            drain.start(drain_timeout);
        };
        tokio::join!(serving, stopping);
        drain
    }
}

/// The state shared by all requests.
#[derive(Debug)]
pub(crate) struct App {
    /// The settings.
    pub(crate) settings: Settings,
    /// The health answer.
    pub(crate) health: HealthReporter,
    /// Counts what is in flight.
    pub(crate) drain: Arc<Drain>,
    pages_asked_for: AtomicU64,
    first_page: OnceLock<Instant>,
}

impl App {
    pub(crate) fn new(settings: Settings) -> Self {
        let health = HealthReporter::new(AppIdentity {
            deployment: settings.backend.as_str().to_owned(),
            version: Some(settings.version.as_str().to_owned()),
        });
        Self {
            settings,
            health,
            drain: Arc::default(),
            pages_asked_for: AtomicU64::new(0),
            first_page: OnceLock::new(),
        }
    }

    /// Whether this request is one of those that fail. They are spread evenly, and the last of each hundred is one.
    pub(crate) fn fails_now(&self) -> bool {
        let Settings { fail_percent: percent, fail_for, .. } = self.settings;
        let asked = *self.first_page.get_or_init(Instant::now);
        if !fail_for.is_zero() && asked.elapsed() >= fail_for {
            return false;
        }
        let before = self.pages_asked_for.fetch_add(1, Ordering::Relaxed) % 100;
        before * percent / 100 != (before + 1) * percent / 100
    }
}
