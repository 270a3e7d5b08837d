//! The admin side, on its own thread so that a saturated data path can't delay it: [`control`] implements the
//! operations, [`reload`] the largest of them, [`api`] maps them to HTTP, [`server`] serves it, [`socket`] controls
//! access.

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
