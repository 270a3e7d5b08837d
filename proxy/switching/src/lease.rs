//! Activations, lanes and leases: count exchanges so that "drained" is exact.
//!
//! An [`Activation`] is one stretch of time in which a backend is active. It has one [`Lane`] for each worker thread,
//! so that workers don't share a counter's cache line. A [`Lease`] is one exchange's hold on its lane. The [`Ledger`]
//! outlives them all and counts them.

use super::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// What a worker keeps in addition to its count for as long as an activation lives: its idle upstream connections.
pub trait LanePayload {
    /// The activation gets no new exchanges: release everything kept for them.
    fn retire(&self);

    /// How many idle connections are kept.
    fn idle(&self) -> usize;
}

impl LanePayload for () {
    fn retire(&self) {}

    fn idle(&self) -> usize {
        0
    }
}

/// The owner of an activation's ledger, which is notified when it is drained.
pub trait LedgerOwner {
    /// Called once, when the last lane is gone: no exchange can be using the activation any more.
    fn drained(&self);
}

/// The kind of an exchange, for the two counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseKind {
    /// A request with its response.
    Request,
    /// An upgraded connection.
    Tunnel,
}

/// One worker's counts. Written by that worker alone, read by the admin side. On a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct LaneCounts {
    requests: AtomicU64,
    tunnels: AtomicU64,
}

impl LaneCounts {
    fn of(&self, kind: LeaseKind) -> &AtomicU64 {
        match kind {
            LeaseKind::Request => &self.requests,
            LeaseKind::Tunnel => &self.tunnels,
        }
    }
}

/// The counts of one activation. Holding it keeps no lane alive.
#[derive(Debug)]
pub struct Ledger<O: LedgerOwner> {
    owner: O,
    tallies: Box<[LaneCounts]>,
    open_lanes: AtomicUsize,
    cut: AtomicBool,
    retired: AtomicBool,
}

impl<O: LedgerOwner> Ledger<O> {
    /// Its owner.
    pub fn owner(&self) -> &O {
        &self.owner
    }

    /// Requests in flight.
    pub fn requests(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.requests.load(Ordering::Relaxed)).sum()
    }

    /// Tunnels in flight.
    pub fn tunnels(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.tunnels.load(Ordering::Relaxed)).sum()
    }

    /// Whether no exchange can be using the activation any more. Once true, it stays true.
    pub fn is_drained(&self) -> bool {
        self.open_lanes.load(Ordering::Acquire) == 0
    }

    /// Cuts every remaining exchange. The exchanges look at [`Lease::is_cut`] when they are woken.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Release);
    }
}

/// One worker's part of an activation.
#[derive(Debug)]
pub struct Lane<O: LedgerOwner, P: LanePayload> {
    ledger: Arc<Ledger<O>>,
    worker: usize,
    payload: P,
}

impl<O: LedgerOwner, P: LanePayload> Lane<O, P> {
    /// What the worker keeps for this activation.
    pub fn payload(&self) -> &P {
        &self.payload
    }
}

impl<O: LedgerOwner, P: LanePayload> Drop for Lane<O, P> {
    fn drop(&mut self) {
        if self.ledger.open_lanes.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.ledger.owner.drained();
        }
    }
}

/// One stretch of time in which a backend is active. Held by routing snapshots alone.
#[derive(Debug)]
pub struct Activation<O: LedgerOwner, P: LanePayload> {
    ledger: Arc<Ledger<O>>,
    lanes: Box<[Arc<Lane<O, P>>]>,
}

impl<O: LedgerOwner, P: LanePayload> Activation<O, P> {
    /// A new activation with one lane per worker; at least one.
    pub fn new(owner: O, workers: usize, payload: impl Fn() -> P) -> Self {
        let workers = workers.max(1);
        let ledger = Arc::new(Ledger {
            owner,
            tallies: (0..workers).map(|_| LaneCounts::default()).collect(),
            open_lanes: AtomicUsize::new(workers),
            cut: AtomicBool::new(false),
            retired: AtomicBool::new(false),
        });
        let lane = |worker| Arc::new(Lane { ledger: Arc::clone(&ledger), worker, payload: payload() });
        let lanes = (0..workers).map(lane).collect();
        Self { ledger, lanes }
    }

    /// Its ledger.
    pub fn ledger(&self) -> &Arc<Ledger<O>> {
        &self.ledger
    }

    /// The lane of a worker. A number beyond the last worker's wraps around, so that it can't panic.
    pub fn lane(&self, worker: usize) -> &Lane<O, P> {
        &self.lanes[worker % self.lanes.len()]
    }

    /// All lanes.
    pub fn lanes(&self) -> impl Iterator<Item = &Lane<O, P>> {
        self.lanes.iter().map(|lane| &**lane)
    }

    /// A lease for one exchange: pick and count in one step.
    pub fn lease(&self, worker: usize) -> Lease<O, P> {
        let lane = Arc::clone(&self.lanes[worker % self.lanes.len()]);
        let kind = LeaseKind::Request;
        lane.ledger.tallies[lane.worker].of(kind).fetch_add(1, Ordering::Relaxed);
        Lease { lane, kind }
    }
}

impl<O: LedgerOwner, P: LanePayload> Drop for Activation<O, P> {
    fn drop(&mut self) {
        self.ledger.retired.store(true, Ordering::Release);
        for lane in &self.lanes {
            lane.payload.retire();
        }
    }
}

/// One exchange's hold on an activation. Dropping it ends the exchange.
#[derive(Debug)]
pub struct Lease<O: LedgerOwner, P: LanePayload> {
    lane: Arc<Lane<O, P>>,
    kind: LeaseKind,
}

impl<O: LedgerOwner, P: LanePayload> Lease<O, P> {
    /// The activation's owner.
    pub fn owner(&self) -> &O {
        &self.lane.ledger.owner
    }

    /// What this worker keeps for the activation.
    pub fn payload(&self) -> &P {
        &self.lane.payload
    }

    /// Which worker's lane it is.
    pub fn worker(&self) -> usize {
        self.lane.worker
    }

    /// Whether the exchange was cut.
    pub fn is_cut(&self) -> bool {
        self.lane.ledger.cut.load(Ordering::Acquire)
    }

    /// Whether the activation gets no new exchanges, so that nothing needs to be kept for them.
    pub fn is_retired(&self) -> bool {
        self.lane.ledger.retired.load(Ordering::Acquire)
    }

    /// From now on it counts as a tunnel.
    pub fn becomes_tunnel(&mut self) {
        if self.kind == LeaseKind::Request {
            let tally = self.tally();
            tally.tunnels.fetch_add(1, Ordering::Relaxed);
            tally.requests.fetch_sub(1, Ordering::Relaxed);
            self.kind = LeaseKind::Tunnel;
        }
    }

    fn tally(&self) -> &LaneCounts {
        &self.lane.ledger.tallies[self.lane.worker]
    }
}

impl<O: LedgerOwner, P: LanePayload> Drop for Lease<O, P> {
    fn drop(&mut self) {
        self.tally().of(self.kind).fetch_sub(1, Ordering::Relaxed);
    }
}
