//! The listener and the life of one connection. Called by `main` and by tests that want the app in their own process.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use crate::drain::{Drain, Work};
use crate::settings::Settings;
use crate::{note, routes};

/// How long to leave `accept` alone after it failed: most often it ran out of file descriptors, and only time frees some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound listener, not yet accepting.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
    app: Arc<App>,
}

impl Server {
    /// Binds. Does not wait for `settings.start_delay`, that is the caller's to do.
    pub async fn bind(settings: Settings) -> io::Result<Self> {
        let listener = TcpListener::bind(settings.address).await?;
        let local_addr = listener.local_addr()?;
        let app = Arc::new(App::new(settings));
        Ok(Self { listener, local_addr, app })
    }

    /// The address really bound, with its port.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `stop` is ready, then closes the listener and starts the drain, which is returned. What is in
    /// flight goes on in tasks of its own.
    pub async fn serve_until<T>(self, stop: impl Future<Output = T>) -> Arc<Drain> {
        let Self { listener, app, .. } = self;
        let mut stop = pin!(stop);
        loop {
            tokio::select! {
                biased;
                _ = stop.as_mut() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        tokio::spawn(serve_connection(stream, Arc::clone(&app), app.drain.begin_work()));
                    }
                    Err(error) => {
                        note(format_args!("could not accept a connection: {error}"));
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        app.drain.start();
        Arc::clone(&app.drain)
    }
}

/// What every request may look at.
#[derive(Debug)]
pub(crate) struct App {
    /// What the app was told at its start.
    pub(crate) settings: Settings,
    /// When it started to listen.
    pub(crate) started_at: Instant,
    /// What is in flight. Shared with whoever waits for the end.
    pub(crate) drain: Arc<Drain>,
    pages_asked_for: AtomicU64,
}

impl App {
    pub(crate) fn new(settings: Settings) -> Self {
        let (started_at, drain) = (Instant::now(), Arc::default());
        Self { settings, started_at, drain, pages_asked_for: AtomicU64::new(0) }
    }

    /// Whether this request is one of those that fail: they are spread evenly, and the last of each hundred is one.
    pub(crate) fn fails_now(&self) -> bool {
        let percent = self.settings.fail_percent;
        let before = self.pages_asked_for.fetch_add(1, Ordering::Relaxed) % 100;
        before * percent / 100 != (before + 1) * percent / 100
    }
}

/// Serves requests on one connection until either side is done with it. Idle ones are kept without a limit, since
/// how long a pooled connection lives is the front door's choice.
async fn serve_connection(stream: TcpStream, app: Arc<App>, mut work: Work) {
    // Each event of a stream must leave at once. Without it they only come later, which is no reason to refuse.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let app = Arc::clone(&app);
        async move { Ok::<_, Infallible>(routes::answer(&app, request).await) }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = work.drain_started() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // A connection that broke is everyday life for a test backend, yet worth a line when a test goes wrong.
    if let Err(error) = served {
        note(format_args!("a connection ended early: {error}"));
    }
}
