//! `Expect: 100-continue`, end to end: the client gets `100 Continue` when the app sends it. If the app rejects the
//! request immediately, the body is never sent.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::{Request, StatusCode};
use tokio::sync::Notify;

/// How long to wait for the app before the body is sent anyway: it may not support 100-continue.
const PATIENCE: Duration = Duration::from_secs(1);

/// Holds back a request's body until the app asks for it.
#[derive(Debug, Clone, Default)]
pub(super) struct BodyGate(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_open: AtomicBool,
    opened: Notify,
}

/// Completes when the gate opens.
pub(super) type Opening = Pin<Box<dyn Future<Output = ()> + Send>>;

impl BodyGate {
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

    /// Waits for the app, but not indefinitely.
    pub(super) fn opening(self) -> Opening {
        Box::pin(async move {
            let _ = tokio::time::timeout(PATIENCE, self.0.opened.notified()).await;
            self.open();
        })
    }
}
