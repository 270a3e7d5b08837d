//! The wall clock is changed, as NTP and people do. No wait may depend on it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;

use super::stage::{Stage, StageSetup, apps};
use super::{Fault, FaultConditions, Outcome};

/// The faults of this file.
pub const FAULTS: &[Fault] = &[Fault {
    name: "clock set",
    injected: "an hour back, then two hours ahead (libfaketime; the monotonic clock continues)",
    may_fail: &[],
    in_short: true,
    run: |around| Box::pin(set(around)),
}];

fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten();
    folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}

async fn set(around: FaultConditions) -> Result<Outcome> {
    let Some(library) = library() else {
        return Ok(Outcome::Skipped("libfaketime is not installed (Debian: faketime)".to_owned()));
    };
    let offset = around.dir.join("clock");
    fs::write(&offset, "+0")?;
    let wrapper = [
        "env".to_owned(),
        format!("LD_PRELOAD={}", library.display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", offset.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        "DONT_FAKE_MONOTONIC=1".to_owned(),
    ];
    let apps = apps(&around.dir).await?;
    let mut stage =
        Stage::start(&around.dir, StageSetup { wrapper: wrapper.to_vec(), ..StageSetup::before(&apps) })
            .await?;
    let mut operator = Vec::new();
    let mut slowest = Duration::ZERO;
    for (shift_s, to) in [(-3600, "green"), (3600, "blue")] {
        // Replaced as a whole: half of it would be another time.
        let new = around.dir.join("clock.new");
        fs::write(&new, format!("{shift_s:+}"))?;
        fs::rename(&new, &offset)?;
        let probed = stage.backend(to).await?.last_probe.map(|probe| probe.at);
        let begun = Instant::now();
        stage
            .until("probes continue", async |stage| {
                let probe = stage.backend(to).await.ok()?.last_probe?;
                (Some(&probe.at) != probed.as_ref() && probe.ok).then_some(())
            })
            .await?;
        slowest = slowest.max(begun.elapsed());
        let switched = stage.switch(to).await?;
        ensure!(switched.persisted, "the switch is not on disk");
        let at = switched.switched_at.context("a switch without a time")?;
        let ahead_s = at.parse::<Timestamp>()?.as_second() - Timestamp::now().as_second();
        ensure!(
            (ahead_s - shift_s).abs() < 60,
            "the clock is not set: {ahead_s} s ahead instead of {shift_s}"
        );
        operator.push(format!("switch to {to} at {at}"));
        let other = if to == "green" { "blue" } else { "green" };
        let begun = Instant::now();
        let drained = stage.command(&["drain", other, "--timeout", "5s"]).await?;
        ensure!(
            drained.status.success() && begun.elapsed() < Duration::from_secs(5),
            "the drain: {}",
            drained.output
        );
        stage.carry(40).await?;
    }
    stage.finish(operator.join(", "), slowest, Vec::new()).await
}
