//! A deploy or a rollback, from the first word in the journal to the last.
//!
//! [`machine`] decides, [`journal`] remembers, [`driver`] acts. An event is written to the journal and synced to disk
//! before any effect that follows from it begins, so after `kill -9` the journal says what may have been done, and
//! [`driver::Driver::recover`] goes on from there.

pub mod activation;
pub mod driver;
mod effects;
pub mod facts;
pub mod history;
pub mod journal;
pub mod link;
pub mod lock;
pub mod machine;
pub mod readmit;
pub mod records;
pub mod watch;

pub(crate) use effects::{named, version_text};
