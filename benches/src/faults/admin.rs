//! The admin socket removed, replaced and crowded. An operator must still be able to switch, or see why not.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::stage::{Stage, StageSetup, apps};
use super::{Fault, FaultConditions, Outcome};

/// The faults of this file.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "admin socket removed",
        injected: "its file is deleted, then its whole directory",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(removed(around)),
    },
    Fault {
        name: "admin socket taken over",
        injected: "another program's socket replaces it, and is removed later",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(taken_over(around)),
    },
    Fault {
        name: "admin socket crowded",
        injected: "1,000 clients connect, send nothing, and reconnect when they are dropped",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(crowded(around)),
    },
];

async fn removed(around: FaultConditions) -> Result<Outcome> {
    let apps = apps(&around.dir).await?;
    let mut stage = Stage::start(&around.dir, StageSetup::before(&apps)).await?;
    let socket = stage.admin.socket().to_owned();
    let directory = socket.parent().context("no directory")?.to_owned();
    let mut slowest = Duration::ZERO;
    let mut operator = String::new();
    for (whole_directory, to) in [(false, "green"), (true, "blue")] {
        stage.listen_anew();
        if whole_directory {
            // Not emptied first: uh-proxy may be writing to it right now.
            fs::rename(&directory, directory.with_extension("gone"))?;
        } else {
            fs::remove_file(&socket)?;
        }
        let begun = Instant::now();
        stage
            .until("the operator can connect again", async |stage| {
                let done = stage.command(&["status"]).await.ok()?;
                done.status.success().then_some(())
            })
            .await?;
        slowest = slowest.max(begun.elapsed());
        operator = stage.until_said("the admin socket was removed").await?;
        stage.switch(to).await?;
    }
    stage.finish(operator, slowest, Vec::new()).await
}

async fn taken_over(around: FaultConditions) -> Result<Outcome> {
    let apps = apps(&around.dir).await?;
    let mut stage = Stage::start(&around.dir, StageSetup::before(&apps)).await?;
    let socket = stage.admin.socket().to_owned();
    fs::remove_file(&socket)?;
    let other = UnixListener::bind(&socket)?;
    let operator = stage.until_said("the admin socket was replaced by another file").await?;
    ensure!(socket.exists(), "the other program's socket was removed");
    fs::remove_file(&socket)?;
    drop(other);
    let begun = Instant::now();
    stage
        .until("the operator can connect again", async |stage| {
            stage.switch_by_command("green").await.ok()?.status.success().then_some(())
        })
        .await?;
    let recovery = begun.elapsed();
    stage.finish(operator, recovery, Vec::new()).await
}

async fn crowded(around: FaultConditions) -> Result<Outcome> {
    let apps = apps(&around.dir).await?;
    let mut stage = Stage::start(&around.dir, StageSetup::before(&apps)).await?;
    let mut crowd = JoinSet::new();
    let shown_out = Arc::new(AtomicUsize::new(0));
    for _ in 0..1000 {
        let socket = stage.admin.socket().to_owned();
        let shown_out = Arc::clone(&shown_out);
        crowd.spawn(async move {
            loop {
                if let Ok(mut stream) = UnixStream::connect(&socket).await {
                    let _ = stream.read(&mut [0]).await;
                    shown_out.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }
    stage.carry(100).await?;
    let mut slowest = Duration::ZERO;
    let mut operator = String::new();
    for to in ["green", "blue"].into_iter().cycle().take(if around.thorough { 40 } else { 10 }) {
        let begun = Instant::now();
        let done = stage.switch_by_command(to).await?;
        slowest = slowest.max(begun.elapsed());
        ensure!(done.status.success(), "the operator can't connect: {}", done.output);
        done.output.trim().clone_into(&mut operator);
    }
    crowd.shutdown().await;
    let shown_out = shown_out.load(Ordering::Relaxed);
    ensure!(shown_out > 0, "no idle client was dropped");
    stage.finish(operator, slowest, vec![format!("idle clients were dropped {shown_out} times")]).await
}
