//! The shipped monitoring and Docker files with the real programs.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]
#![expect(clippy::print_stdout, reason = "figures that a run shows, with --nocapture")]

mod monitoring;
mod stack;
