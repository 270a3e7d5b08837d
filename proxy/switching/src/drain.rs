//! Drains: what is in flight on a backend from its past activations, and how it ends.

use uh_protocol::request::Remaining;

use crate::board::InfoLedger;
use crate::live::{CloseSchedule, Fittings};

/// What is in flight on a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holding {
    /// Requests in flight.
    pub requests: u64,
    /// Tunnels in flight.
    pub tunnels: u64,
}

impl From<Holding> for Remaining {
    fn from(holding: Holding) -> Self {
        Self { requests: holding.requests, tunnels: holding.tunnels }
    }
}

/// The exchanges in flight on a standby from its past activations. No new ones can join.
pub struct Drain<F: Fittings> {
    pub(crate) ledgers: Vec<InfoLedger<F>>,
}

impl<F: Fittings> Drain<F> {
    /// What is left.
    #[must_use]
    pub fn remaining(&self) -> Holding {
        sum(&self.ledgers)
    }

    /// Whether nothing is left, exactly.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.ledgers.iter().all(|ledger| ledger.is_drained())
    }

    /// Waits until nothing is left.
    pub async fn wait(&self) {
        for ledger in &self.ledgers {
            loop {
                let notified = ledger.owner().drained.notified();
                tokio::pin!(notified);
                notified.as_mut().enable();
                if ledger.is_drained() {
                    break;
                }
                notified.await;
            }
        }
    }

    /// Asks the remaining tunnels to close, each at its turn. A schedule that has begun isn't changed.
    pub fn close_tunnels(&self, close_schedule: CloseSchedule) {
        self.ledgers.iter().for_each(|ledger| {
            ledger.owner().close_schedule.get_or_init(|| close_schedule);
        });
    }

    /// Cuts the remaining requests. The exchanges see it when they are woken.
    pub fn cut(&self) {
        self.ledgers.iter().for_each(|ledger| ledger.cut());
    }
}

pub(crate) fn sum<F: Fittings>(ledgers: &[InfoLedger<F>]) -> Holding {
    ledgers.iter().fold(Holding::default(), |sum, ledger| Holding {
        requests: sum.requests + ledger.requests(),
        tunnels: sum.tunnels + ledger.tunnels(),
    })
}
