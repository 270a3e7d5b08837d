//! What a trial can exclude: "the new version isn't worse by more than N points".

use crate::history::Z;
use crate::share::Share;

/// The largest excess of the new version's rate over the old one's that the counts don't exclude, as a share of all
/// requests. Newcombe's method: the distance of each rate to its own bound, added as the sides of a right angle. The
/// bounds are [`Z`] standard deviations away, which is far enough for someone who looks often.
#[must_use]
pub fn excluded(new: Share, old: Share) -> f64 {
    if new.all() == 0 || old.all() == 0 {
        return 1.0;
    }
    let up = new.interval(Z).1 - new.rate();
    let down = old.rate() - old.interval(Z).0;
    (new.rate() - old.rate() + up.hypot(down)).clamp(0.0, 1.0)
}
