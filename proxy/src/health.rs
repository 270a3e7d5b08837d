//! Active health checks of every endpoint. [`streak`] decides what a series of results means, [`probe`] makes one
//! probe, [`prober`] repeats it. [`resolver`] keeps resolving the endpoints' names.

pub mod fresh;
pub mod probe;
pub mod prober;
pub mod resolver;
pub mod streak;
