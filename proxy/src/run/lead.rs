//! The admin thread: probes from the start, and leads once the main thread has everything that it needs for that.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;

use tokio::sync::oneshot;
use uh_system::plain;

use super::supervise::{self, Event};
use super::take_over;
use crate::admin::control::Control;
use crate::admin::leadership::{Leadership, News};
use crate::admin::socket::AdminSocket;
use crate::admin::{server, successor};
use crate::front::listener::Listener;
use crate::handover::wire::FromSuccessor;
use crate::health::prober::{self, HealthNews};
use crate::tls;

/// What the admin thread needs to lead.
pub(super) struct Lead {
    pub(super) socket: Arc<parking_lot::Mutex<AdminSocket>>,
    pub(super) users: Vec<u32>,
    pub(super) metrics: Option<Listener>,
    pub(super) successors: UnixListener,
    pub(super) predecessor: Option<UnixStream>,
    pub(super) events: Sender<Event>,
}

/// Starts the admin thread, which probes at once, and leads when it is sent what it needs for that.
pub(super) fn start_admin(control: &Arc<Control>) -> io::Result<oneshot::Sender<Lead>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (lead, leads) = oneshot::channel::<Lead>();
    let control = Arc::clone(control);
    thread::Builder::new().name("admin".to_owned()).spawn(move || {
        runtime.block_on(async move {
            tokio::spawn(prober::run(Arc::clone(&control.board), Arc::clone(&control.news)));
            tokio::spawn(supervise::beat(Arc::clone(&control)));
            tokio::spawn(Arc::clone(&control).reopen_log_when_wanted());
            // Its end is the end of the process.
            if let Ok(lead) = leads.await {
                self::lead(lead, control).await;
            }
        });
    })?;
    Ok(lead)
}

async fn lead(lead: Lead, control: Arc<Control>) {
    let Lead { socket, users, metrics, successors, predecessor, events } = lead;
    // First, so that no status reports fewer requests than there are. Callers wait for some seconds at most.
    if let Some(stream) = predecessor {
        take_over::lead_after(stream, &control).await;
    }
    tokio::spawn(Arc::clone(&control).reload_when_wanted());
    tokio::spawn(Arc::clone(&control).upgrade_when_wanted());
    if let Some(server) = &control.tls {
        tokio::spawn(tls::watch::run(Arc::clone(server)));
    }
    tokio::spawn(persist_health(Arc::clone(&control), Arc::clone(&control.news)));
    let metrics = metrics.map(|Listener { socket, holder, .. }| (socket, holder));
    let tell = move |news: News| {
        // If nobody listens, the process is about to end anyway.
        let _ = events.send(match news {
            News::Superseded(successor) => Event::Superseded(successor),
            News::SuccessorReady => Event::SuccessorReady,
            News::Leave => Event::Leave,
            News::LeadsAgain => Event::LeadsAgain,
            News::Reported => Event::Reported,
        });
    };
    let leadership = Leadership::begin(Arc::clone(&control), Arc::clone(&socket), metrics, tell);
    match tokio::net::UnixListener::from_std(successors) {
        Ok(listener) => drop(tokio::spawn(successor::serve(listener, leadership))),
        Err(error) => tracing::error!(error = %plain(&error), "cannot wait for a successor"),
    }
    control.predecessor.order(FromSuccessor::Ready);
    server::serve_admin(socket, control, users).await;
}

/// Keeps the state file's `healthy` and `version` up to date, and wakes what ends splits to unhealthy backends.
async fn persist_health(control: Arc<Control>, news: Arc<HealthNews>) {
    loop {
        news.health.notified().await;
        control.persist_later();
        control.split_health.notify_one();
    }
}
