//! `Expect: 100-continue`, end to end: the client is told to send its body when the app says so. If the app refuses
//! at once, the body is never sent.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::{Request, StatusCode};
use tokio::sync::Notify;

/// How long an app may be silent before it gets the body all the same: it may not know of 100-continue.
const PATIENCE: Duration = Duration::from_secs(1);

/// Holds back a request's body until the app asks for it.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_open: AtomicBool,
    opened: Notify,
}

/// Ends when the gate is open.
pub(super) type Opening = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Gate {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Opens with the app's `100 Continue`.
    pub(super) fn watch<B>(&self, request: &mut Request<B>) {
        let gate = self.clone();
        hyper::ext::on_informational(request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                gate.open();
            }
        });
    }

    fn open(&self) {
        self.0.is_open.store(true, Ordering::Relaxed);
        self.0.opened.notify_one();
    }

    pub(super) fn is_open(&self) -> bool {
        self.0.is_open.load(Ordering::Relaxed)
    }

    /// Waits for the app, but not for ever.
    pub(super) fn opening(self) -> Opening {
        Box::pin(async move {
            let _ = tokio::time::timeout(PATIENCE, self.0.opened.notified()).await;
            self.open();
        })
    }
}
