//! Active health checks of every endpoint. [`streak`] decides what a series of results means, [`probe`] makes one
//! probe, [`prober`] repeats it. [`resolver`] keeps resolving the endpoints' names.

pub(crate) mod fresh;
pub(crate) mod probe;
pub(crate) mod prober;
pub(crate) mod resolver;
pub(crate) mod streak;
