//! Interference at every step of a deploy: a manual switch, a rollback, `retire`, a second deploy, a restart of uh-proxy.
//! At the end, what `uh-deploy` reports is compared with the backend that answers through uh-proxy.

mod claims;
mod sweep;

use anyhow::{Result, ensure};

use super::{BROKEN, Fault, FaultConditions, Outcome};
use sweep::Sweep;

/// What happens while a deploy is held at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interference {
    /// `uh-proxy switch` to the backend that isn't active.
    Switch,
    /// `uh-deploy rollback`, which waits for the end of the deploy.
    Rollback,
    /// The deploy is killed, and then `uh-deploy rollback`.
    KillAndRollback,
    /// `uh-deploy retire --now`.
    Retire,
    /// Another `uh-deploy blue-green`.
    SecondDeploy,
    /// `kill -9` of uh-proxy, and a start.
    KillFront,
    /// SIGTERM to uh-proxy, and a start.
    StopFront,
}

/// The faults of this file.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "switch by hand within a deploy",
        injected: "`uh-proxy switch` to the other backend at every step of a deploy",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(run(around, Interference::Switch)),
    },
    Fault {
        name: "rollback within a deploy",
        injected: "`uh-deploy rollback` begun at every step of a deploy",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(run(around, Interference::Rollback)),
    },
    Fault {
        name: "rollback after a deploy was killed",
        injected: "kill -9 of the deploy at every step, then `uh-deploy rollback`",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(run(around, Interference::KillAndRollback)),
    },
    Fault {
        name: "retire within a deploy",
        injected: "`uh-deploy retire --now` at every step of a deploy",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(run(around, Interference::Retire)),
    },
    Fault {
        name: "second deploy within a deploy",
        injected: "another `uh-deploy blue-green` at every step of a deploy",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(run(around, Interference::SecondDeploy)),
    },
    Fault {
        name: "front door killed within a deploy",
        injected: "kill -9 at every step of a deploy, then started again",
        may_fail: BROKEN,
        in_short: true,
        run: |around| Box::pin(run(around, Interference::KillFront)),
    },
    Fault {
        name: "front door stopped within a deploy",
        injected: "SIGTERM at every step of a deploy, then started again",
        // An idle connection may be closed while its client writes to it.
        may_fail: &["could not connect", "closed before the response"],
        in_short: true,
        run: |around| Box::pin(run(around, Interference::StopFront)),
    },
];

/// The short form tests one point before each effect, and those at which traffic or an instance has just changed.
fn is_telling(point: &str) -> bool {
    let telling = [
        "effect.clear.withdrawn",
        "effect.clear.stopped",
        "process.start.spawned",
        "effect.register.after",
        "effect.switch.after",
        "journal.switched.after",
        "effect.confirm.after",
    ];
    point.starts_with("effect.") && point.ends_with(".before") || telling.contains(&point)
}

/// Differences that are shown; the rest are counted.
const SHOWN: usize = 3;

async fn run(around: FaultConditions, interference: Interference) -> Result<Outcome> {
    let mut sweep = Sweep::begin(&around.dir, interference).await?;
    let mut points = sweep.points().await?;
    if points.is_empty() {
        let why = "uh-deploy is built without the feature fault-points, and can't be held at a step";
        return Ok(Outcome::Skipped(why.to_owned()));
    }
    points.retain(|point| around.thorough || is_telling(point));
    ensure!(points.len() >= 10, "only {} points: {points:?}", points.len());
    for point in &points {
        sweep.at(point).await?;
    }
    let differences = sweep.differences();
    ensure!(
        differences.is_empty(),
        "{} differences at {} points: {}",
        differences.len(),
        points.len(),
        differences.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n")
    );
    sweep.finish(points.len()).await
}
