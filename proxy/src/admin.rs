//! The admin side, on a thread of its own, so that a saturated data path can't delay it: [`control`] is what can be
//! asked of the front door, [`reload`] one thing in particular, [`api`] its HTTP form, [`server`] serves that, [`socket`] guards the door.

pub mod api;
mod audit;
mod backends;
pub mod control;
mod drain;
mod maintenance;
pub mod reload;
pub mod server;
pub mod socket;
mod switch;
