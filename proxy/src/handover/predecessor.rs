//! What a uh-proxy knows of the one that it has replaced, as long as that one ends: it follows each change of the routing
//! before the change is replied to, and what it holds counts.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use uh_protocol::{BackendName, ServiceName};
use uh_switching::{Holding, RoutingView};

use super::wire::{self, BackendCounts, Counts, FromPredecessor, FromSuccessor};
use crate::state::file::StateFile;

/// How long a predecessor may take to follow a change. It takes less than a millisecond. One that takes longer is cut off,
/// so that it can't delay a switch indefinitely, and ends what it still holds.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(1);

/// How long it may take for the first one: it wakes all its connections for the stop at the same time.
const FIRST_FOLLOWS_WITHIN: Duration = Duration::from_millis(2500);

/// Orders that wait to be sent.
const QUEUE: usize = 64;

/// The process that this one has replaced, if it is still there.
#[derive(Debug)]
pub(crate) struct Predecessor {
    orders: Mutex<Orders>,
    view: watch::Sender<View>,
}

#[derive(Debug, Default)]
struct Orders {
    /// Which predecessor it is.
    number: u64,
    to: Option<mpsc::Sender<FromSuccessor>>,
    seq: u64,
}

/// Why nothing more is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Gone,
    CutOff,
}

/// What is known of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    is_there: bool,
    counts: Counts,
    /// What those that are gone have cut.
    cut: BTreeMap<(ServiceName, BackendName), u64>,
}

impl Default for Predecessor {
    fn default() -> Self {
        Self { orders: Mutex::default(), view: watch::Sender::new(View::default()) }
    }
}

impl Predecessor {
    /// Takes over from the process at the other end, which has yielded: it stops accepting, and follows from now on, until
    /// that process is gone.
    pub(crate) fn attend(self: &Arc<Self>, stream: UnixStream) -> JoinHandle<()> {
        let (orders, waiting) = mpsc::channel(QUEUE);
        // At once, so that no change passes it by.
        let number = {
            let mut current = self.orders.lock();
            let number = current.number + 1;
            *current = Orders { number, to: Some(orders), seq: 0 };
            number
        };
        self.view.send_modify(|view| {
            view.is_there = true;
            view.counts = Counts::default();
        });
        let predecessor = Arc::clone(self);
        tokio::spawn(async move {
            // If it was cut off, the log says so already.
            let ended = predecessor.speak(stream, waiting).await;
            if ended == Ended::Gone && predecessor.orders.lock().number == number {
                predecessor.forget();
                tracing::info!("the uh-proxy that this one has replaced is gone");
            }
        })
    }

    async fn speak(&self, stream: UnixStream, mut orders: mpsc::Receiver<FromSuccessor>) -> Ended {
        let (mut from, mut to) = wire::messages::<FromPredecessor>(stream);
        let mut sent = to.send(&FromSuccessor::Leading).await;
        while sent.is_ok() {
            sent = tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => to.send(&order).await,
                    None => return Ended::CutOff,
                },
                message = from.recv() => match message {
                    Some(FromPredecessor::Counts(counts)) => {
                        self.view.send_modify(|view| view.counts = counts);
                        Ok(())
                    }
                    Some(_) => Ok(()),
                    None => return Ended::Gone,
                },
            };
        }
        match sent {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                self.cut_off();
                Ended::CutOff
            }
            _ => Ended::Gone,
        }
    }

    /// It is none any more.
    pub(crate) fn forget(&self) {
        self.orders.lock().to = None;
        self.view.send_modify(|view| {
            for backend in std::mem::take(&mut view.counts).backends {
                *view.cut.entry((backend.service, backend.backend)).or_default() += backend.cut;
            }
            view.is_there = false;
        });
    }

    /// Whether it is there.
    #[must_use]
    pub(crate) fn is_there(&self) -> bool {
        self.view.borrow().is_there
    }

    /// Whether it has understood that it isn't to lead again, or is gone.
    #[must_use]
    pub(crate) fn leaves(&self) -> bool {
        let view = self.view.borrow();
        !view.is_there || view.counts.leaves
    }

    /// Waits until it has followed the current routing, which `state` returns, or is gone.
    pub(crate) async fn synced(&self, state: impl FnOnce() -> Option<StateFile>) {
        let seq = {
            // Under the lock, so that a later message never has an earlier routing.
            let mut orders = self.orders.lock();
            let Some(to) = orders.to.clone() else { return };
            let Some(state) = state() else { return };
            orders.seq += 1;
            let seq = orders.seq;
            if to.try_send(FromSuccessor::Follow { seq, state: Box::new(state) }).is_err() {
                drop(orders);
                return self.cut_off();
            }
            seq
        };
        let mut view = self.view.subscribe();
        let followed = view.wait_for(|view| !view.is_there || view.counts.seq >= seq);
        let at_most = if seq == 1 { FIRST_FOLLOWS_WITHIN } else { FOLLOWS_WITHIN };
        if tokio::time::timeout(at_most, followed).await.is_err() {
            self.cut_off();
        }
    }

    fn cut_off(&self) {
        tracing::error!(
            "the uh-proxy that this one has replaced doesn't follow the routing in time; cutting it off, and its requests with it"
        );
        self.forget();
    }

    /// What it holds on a backend.
    #[must_use]
    pub(crate) fn holding(&self, service: &ServiceName, backend: &BackendName) -> Holding {
        self.of(service, backend, |counts| counts.holding.into()).unwrap_or_default()
    }

    /// What it holds on a standby, and whether that is nothing, exactly.
    #[must_use]
    pub(crate) fn draining(&self, service: &str, backend: &BackendName) -> (Holding, bool) {
        let past = |counts: &BackendCounts| {
            // `None`: it hasn't followed yet.
            counts.past.map_or((counts.holding.into(), false), |past| (past.into(), counts.drained))
        };
        let Ok(service) = service.parse() else { return (Holding::default(), true) };
        self.of(&service, backend, past).unwrap_or((Holding::default(), true))
    }

    /// How many requests have been cut there, in total. That never decreases.
    #[must_use]
    pub(crate) fn cut(&self, service: &str, backend: &BackendName) -> u64 {
        let Ok(service) = service.parse::<ServiceName>() else { return 0 };
        let now = self.of(&service, backend, |counts| counts.cut).unwrap_or_default();
        let earlier = self.view.borrow().cut.get(&(service, backend.clone())).copied();
        now + earlier.unwrap_or_default()
    }

    fn of<T>(
        &self,
        service: &ServiceName,
        backend: &BackendName,
        read: impl FnOnce(&BackendCounts) -> T,
    ) -> Option<T> {
        let view = self.view.borrow();
        let is_that = |counts: &&BackendCounts| counts.service == *service && counts.backend == *backend;
        view.counts.backends.iter().find(is_that).map(read)
    }

    /// Adds what it holds to a view of the routing.
    pub(crate) fn add_to<S: uh_switching::Service>(&self, view: &mut RoutingView<S>) {
        if !self.is_there() {
            return;
        }
        for service in &mut view.services {
            let name = service.state.config.name().clone();
            for backend in &mut service.backends {
                let held = self.holding(&name, &backend.backend.name);
                backend.holding.requests += held.requests;
                backend.holding.tunnels += held.tunnels;
            }
        }
    }

    /// Sends it an order that needs no answer.
    pub(crate) fn order(&self, order: FromSuccessor) {
        let to = self.orders.lock().to.clone();
        if to.is_some_and(|to| to.try_send(order).is_err()) {
            self.cut_off();
        }
    }

    /// Its changes from now on.
    pub(crate) fn changes(&self) -> Changes {
        Changes(self.view.subscribe())
    }
}

/// The changes of a predecessor.
pub(crate) struct Changes(watch::Receiver<View>);

impl Changes {
    /// Waits for one.
    pub(crate) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            // No more of them.
            std::future::pending::<()>().await;
        }
    }
}
