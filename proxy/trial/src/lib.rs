//! Judges a new version that serves some of the clients while the old one serves the others. Pure: no sockets, no
//! clock, no configuration. The caller says what happened and when; everything follows from that.
//!
//! Clients are divided by a coin of known weight. If the version makes no difference, a client that fails is on the new
//! version with exactly that probability, *whatever the error rate is at the moment*. So failures of clients are
//! compared with the coin, and an outage that hits both versions proves nothing. The evidence is a product of
//! likelihood ratios that starts at 1 and, for a version that is no worse, doesn't grow on average. By Ville's
//! inequality it *ever* reaches N in at most 1 of N trials, however often it is looked at.
//!
//! ```text
//! clients' first failures ──▶ CoinTest ────┐
//! requests of the new one ──▶ HistoryTest ─┼─▶ Judge ─┐ (failures)
//! slow moments ─────────────▶ WindowTest ──┴─▶ Judge ─┼─▶ Trial ──▶ Decision
//! Seen: was this client's first?       (slowness)     │
//!                                 Plan: may the weight grow? ◀── the caller
//! ```
//!
//! `docs/trials.md` explains the statistics and how they were checked. Sources: Lindon and Malek, Anytime-Valid Inference
//! for Multinomial Count Data (NeurIPS 2022); Lindon, Sanden and Shirikian, Rapid Regression Detection in Software
//! Deployments (KDD 2022).

pub mod bound;
pub mod coin;
pub mod evidence;
pub mod history;
pub mod judge;
pub mod plan;
pub mod routes;
pub mod seen;
pub mod share;
pub mod slowness;
pub mod trial;
pub mod windows;

pub use bound::excluded;
pub use coin::CoinTest;
pub use history::HistoryTest;
pub use judge::{By, Decision, Figures, Judge, Rule};
pub use plan::{Next, Plan, PlanError, Step};
pub use routes::Routes;
pub use seen::Seen;
pub use share::{Share, Side, Weight};
pub use slowness::{SlowBound, overdue_bound, slow_bound};
pub use trial::{Counts, History, Kind, SideCounts, Status, Trial};
pub use windows::{Ended, WindowTest};

#[cfg(test)]
mod tests;
