//! Certificates by ACME, from pebble: a certificate authority for tests, with the programs of Debian's package `pebble`.
//! What it lacks (refusals with a deadline, renewal information, profiles) comes from a small server of our own.

mod authority;
#[cfg(feature = "fault-points")]
mod crashes;
mod failures;
mod issuing;
mod planning;
mod renewing;
mod showing;
