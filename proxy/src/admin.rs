//! The admin side, on its own thread so that a saturated data path can't delay it. From the caller inwards: `server`
//! serves HTTP on the socket whose access `socket` controls; `api` maps calls to operations, each in a file of its own
//! (`switch` and `release`, which share `moves`; `backends`, `drain`, `maintenance`, `preview`, `reload`, `split`, with `split_end` for those that end by themselves, and `trial` and `history` for what ends them when they are worse); `audit` is the end of every change; `upgrade` starts another uh-proxy in the place of this one; `status` says what is
//! in force, `certificates` which certificates there are; `control` is what all of them work on.

mod api;
mod audit;
mod backends;
mod certificates;
pub(crate) mod control;
mod drain;
mod follow;
mod history;
pub(crate) mod leadership;
mod maintenance;
mod moves;
mod preview;
mod release;
mod reload;
pub(crate) mod server;
pub(crate) mod socket;
mod split;
mod split_end;
mod status;
pub(crate) mod successor;
mod switch;
mod trial;
pub(crate) mod upgrade;
