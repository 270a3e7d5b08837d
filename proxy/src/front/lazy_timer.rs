//! One timer per connection, armed only when needed, and moved only when it would fire too late.
//!
//! Deadlines move with every request; the timer doesn't. If it fires before the current deadline, it is armed again. So
//! a busy connection touches the timer wheel about once per timeout, not once per read.

use std::future::Future as _;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that fires this long after its deadline shows that this process was stopped, suspended or starved.
pub(crate) const OVERSLEPT: Duration = Duration::from_millis(250);

/// Input that arrived meanwhile is then handled first, in the next turn of the event loop.
const SECOND_LOOK: Duration = Duration::from_millis(100);

/// A lazily armed timer, polled by one task.
#[derive(Debug, Default)]
pub(crate) struct LazyTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// It is armed, and wakes the task.
    armed: bool,
    /// When the process last overslept: earlier deadlines are postponed to this time, once.
    put_off: Option<Instant>,
}

impl LazyTimer {
    /// Whether the deadline has passed. If not, the task is woken when it has. A deadline that passed while the process
    /// wasn't running is postponed once, so that the other side isn't blamed for it.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>, deadline: Instant) -> bool {
        let due = self.put_off.map_or(deadline, |put_off| put_off.max(deadline));
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if sleep.deadline() > due {
            sleep.as_mut().reset(due);
        } else if self.armed && !sleep.is_elapsed() {
            return false;
        }
        while sleep.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now < due {
                sleep.as_mut().reset(due);
            } else if due == deadline && now - deadline >= OVERSLEPT {
                self.put_off = Some(now + SECOND_LOOK);
                return self.poll_expired(cx, deadline);
            } else {
                self.armed = false;
                return true;
            }
        }
        self.armed = true;
        false
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    async fn expired(timer: &mut LazyTimer, deadline: Instant) -> bool {
        poll_fn(|cx| Poll::Ready(timer.poll_expired(cx, deadline))).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_kept_and_one_that_was_overslept_is_put_off_once() {
        let (mut timer, deadline) = (LazyTimer::default(), Instant::now() + Duration::from_secs(1));
        assert!(!expired(&mut timer, deadline).await);
        tokio::time::advance(Duration::from_millis(1010)).await;
        assert!(expired(&mut timer, deadline).await);

        let deadline = Instant::now() + Duration::from_secs(1);
        assert!(!expired(&mut timer, deadline).await);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(!expired(&mut timer, deadline).await, "it was our sleep");
        assert!(!expired(&mut timer, deadline).await);
        tokio::time::advance(SECOND_LOOK).await;
        assert!(expired(&mut timer, deadline).await, "only once");
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_deadlines_that_were_overslept_each_is_put_off_once() {
        let mut timer = LazyTimer::default();
        let deadlines = [1, 2].map(|seconds| Instant::now() + Duration::from_secs(seconds));
        tokio::time::advance(Duration::from_secs(60)).await;
        for expected in [false, true] {
            for deadline in deadlines {
                assert_eq!(expired(&mut timer, deadline).await, expected);
            }
            tokio::time::advance(SECOND_LOOK).await;
        }
    }
}
