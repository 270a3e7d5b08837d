//! Reports what is being waited for when a wait takes longer than a moment, so that a silent output never leaves an
//! operator guessing.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::time::span;

/// Most answers come sooner, and need no line.
const SAY_AFTER: Duration = Duration::from_secs(3);

/// The time between two lines about the same wait.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Where to report it.
#[derive(Clone)]
pub struct Waiting {
    say: Rc<dyn Fn(&str)>,
}

impl Waiting {
    /// Reports through `say`, a line at a time.
    pub fn new(say: impl Fn(&str) + 'static) -> Self {
        Self { say: Rc::new(say) }
    }

    /// Waits for `done`. `what` completes "waiting for …"; `at_most` is how long it may take, as far as that is known here.
    pub async fn on<T>(&self, what: &str, at_most: Duration, done: impl Future<Output = T>) -> T {
        let mut done = std::pin::pin!(done);
        let start = Instant::now();
        let mut pause = SAY_AFTER;
        loop {
            match tokio::time::timeout(pause, &mut done).await {
                Ok(done) => return done,
                Err(_) => {
                    let so_far = Duration::from_secs(start.elapsed().as_secs());
                    (self.say)(&format!(
                        "waiting for {what} ({} so far, at most {})",
                        span(so_far),
                        span(at_most)
                    ));
                }
            }
            pause = SAY_EVERY;
        }
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;

    use super::*;

    /// What was said is kept.
    pub(crate) fn kept() -> (Waiting, Rc<RefCell<Vec<String>>>) {
        let lines = Rc::new(RefCell::new(Vec::new()));
        let keep = Rc::clone(&lines);
        (Waiting::new(move |line| keep.borrow_mut().push(line.to_owned())), lines)
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_long_wait_is_reported_and_not_at_every_moment() {
        let (waiting, lines) = kept();
        let minute = Duration::from_secs(60);
        let quick = waiting.on("a quick one", minute, tokio::time::sleep(Duration::from_secs(2)));
        quick.await;
        assert!(lines.borrow().is_empty(), "{lines:?}");
        waiting.on("the Docker Engine", minute, tokio::time::sleep(Duration::from_secs(30))).await;
        assert_eq!(lines.borrow().len(), 3, "{lines:?}");
        assert!(lines.borrow()[0].starts_with("waiting for the Docker Engine ("), "{lines:?}");
    }
}
