//! A deploy or rollback, from its first journal entry to its last.
//!
//! `machine` decides, [`journal`] records, `driver` acts. An event is written to the journal and synced to disk
//! before any effect that follows from it starts. So after `kill -9` the journal says what may have been done, and
//! `driver::Driver::recover` continues from there.
//!
//! An operation has one member, or several services that move together: `member` is one of them with its effects, and
//! `driver/together` makes one effect of those of all.

pub(crate) mod activation;
pub(crate) mod driver;
mod effects;
pub(crate) mod facts;
pub mod history;
pub mod journal;
pub(crate) mod link;
pub(crate) mod lock;
pub(crate) mod machine;
pub(crate) mod member;
pub(crate) mod progress;
pub(crate) mod readmit;
pub mod records;
pub mod trial;
pub(crate) mod watch;
