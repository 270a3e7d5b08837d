//! One timer for each connection, armed only when it is waited for, and moved only when it would fire too late.
//!
//! Deadlines move with every request; the timer doesn't. If it fires before the deadline of the day, it is armed again.
//! So a busy connection touches the timer wheel about once a timeout, not once a read.

use std::future::Future as _;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that fires this long after its deadline says something of us: we were stopped, suspended or starved.
pub const OVERSLEPT: Duration = Duration::from_millis(250);

/// What has come meanwhile is then looked at first: the next turn of the event loop sees it.
const SECOND_LOOK: Duration = Duration::from_millis(100);

/// A lazily armed timer.
#[derive(Debug, Default)]
pub struct Watchdog {
    sleep: Option<Pin<Box<Sleep>>>,
    /// When we last overslept: deadlines before this are put off to it, all of them and once.
    put_off: Option<Instant>,
}

impl Watchdog {
    /// Whether the deadline has passed. If not, the task is woken when it has. A deadline that passed while we were not
    /// running is put off once, or the other side would be blamed for our sleep.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>, deadline: Instant) -> bool {
        let due = self.put_off.map_or(deadline, |put_off| put_off.max(deadline));
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if sleep.deadline() > due {
            sleep.as_mut().reset(due);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now < due {
                sleep.as_mut().reset(due);
            } else if due == deadline && now - deadline >= OVERSLEPT {
                self.put_off = Some(now + SECOND_LOOK);
                return self.poll_expired(cx, deadline);
            } else {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    async fn expired(watchdog: &mut Watchdog, deadline: Instant) -> bool {
        poll_fn(|cx| Poll::Ready(watchdog.poll_expired(cx, deadline))).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_kept_and_one_that_was_overslept_is_put_off_once() {
        let (mut watchdog, deadline) = (Watchdog::default(), Instant::now() + Duration::from_secs(1));
        assert!(!expired(&mut watchdog, deadline).await);
        tokio::time::advance(Duration::from_millis(1010)).await;
        assert!(expired(&mut watchdog, deadline).await);

        let deadline = Instant::now() + Duration::from_secs(1);
        assert!(!expired(&mut watchdog, deadline).await);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(!expired(&mut watchdog, deadline).await, "it was our sleep");
        assert!(!expired(&mut watchdog, deadline).await);
        tokio::time::advance(SECOND_LOOK).await;
        assert!(expired(&mut watchdog, deadline).await, "only once");
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_deadlines_that_were_overslept_each_is_put_off_once() {
        let mut watchdog = Watchdog::default();
        let deadlines = [1, 2].map(|seconds| Instant::now() + Duration::from_secs(seconds));
        tokio::time::advance(Duration::from_secs(60)).await;
        for expected in [false, true] {
            for deadline in deadlines {
                assert_eq!(expired(&mut watchdog, deadline).await, expected);
            }
            tokio::time::advance(SECOND_LOOK).await;
        }
    }
}
