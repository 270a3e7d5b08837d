//! The admin side, on its own thread so that a saturated data path can't delay it. From the caller inwards: `server`
//! serves HTTP on the socket whose access `socket` controls; `api` maps calls to operations, each in a file of its own
//! (`switch`, `backends`, `drain`, `maintenance`, `reload`); `audit` is the end of every change; `status` says what is
//! in force, `certificates` which certificates there are; `control` is what all of them work on.

mod api;
mod audit;
mod backends;
mod certificates;
pub(crate) mod control;
mod drain;
mod maintenance;
mod reload;
pub(crate) mod server;
pub(crate) mod socket;
mod status;
mod switch;
