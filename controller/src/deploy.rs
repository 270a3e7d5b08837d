//! A deploy or rollback, from its first journal entry to its last.
//!
//! [`machine`] decides, [`journal`] records, [`driver`] acts. An event is written to the journal and synced to disk
//! before any effect that follows from it starts. So after `kill -9` the journal says what may have been done, and
//! [`driver::Driver::recover`] continues from there.

pub mod activation;
pub mod driver;
mod effects;
pub mod facts;
pub mod history;
pub mod journal;
pub mod link;
pub mod lock;
pub mod machine;
pub mod progress;
pub mod readmit;
pub mod records;
pub mod watch;
