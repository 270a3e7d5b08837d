//! One timer for each connection, armed only when it is waited for, and moved only when it would fire too late.
//!
//! Deadlines move with every request; the timer doesn't. If it fires before the deadline of the day, it is armed again.
//! So a busy connection touches the timer wheel about once a timeout, not once a read.

use std::future::Future as _;
use std::pin::Pin;
use std::task::Context;

use tokio::time::{Instant, Sleep, sleep_until};

/// A lazily armed timer.
#[derive(Debug, Default)]
pub struct Watchdog {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Watchdog {
    /// Whether the deadline has passed. If not, the task is woken when it has.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>, deadline: Instant) -> bool {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return true;
            }
            sleep.as_mut().reset(deadline);
        }
        false
    }
}
