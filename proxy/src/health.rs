//! Active probing: asks every endpoint, in turn and for ever, whether it is healthy. [`streak`] decides what a row of
//! answers means, [`probe`] asks once, [`prober`] keeps asking. [`resolver`] keeps looking up the endpoints' names.

pub mod fresh;
pub mod probe;
pub mod prober;
pub mod resolver;
pub mod streak;
