//! Apps that run but don't work.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::time::timeout;

use super::scripted::{Manner, Scripted};
use super::stage::{SOON, Stage, StageSetup, ask};
use super::{Fault, FaultConditions, Outcome};
use crate::fickle::{self, Book, Death, When};

/// The faults of this file.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "app hangs",
        injected: "the active app accepts, reads and never answers (read timeout 1 s); the operator switches",
        may_fail: &["status 504"],
        in_short: true,
        run: |around| Box::pin(hangs(around)),
    },
    Fault {
        name: "app drips",
        injected: "the active app sends 1 byte/s, even for heads (read timeout 3 s); the operator switches and drains with --cut",
        may_fail: &["status 503"],
        in_short: true,
        run: |around| Box::pin(drips(around)),
    },
    Fault {
        name: "app closes idle connections",
        injected: "as the next request arrives on them, with FIN and with RST",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(closes_idle(around)),
    },
];

const SHORT_READ: &str = "[services.app.timeouts]\nread = \"1s\"\n";

async fn pair() -> Result<(Scripted, Scripted, StageSetup)> {
    let (blue, green) = (Scripted::start("blue").await?, Scripted::start("green").await?);
    let setup = StageSetup::at(blue.address, green.address);
    Ok((blue, green, setup))
}

async fn hangs(around: FaultConditions) -> Result<Outcome> {
    let (blue, _green, setup) = pair().await?;
    let mut stage = Stage::start(&around.dir, StageSetup { tables: SHORT_READ.to_owned(), ..setup }).await?;
    blue.behave(Manner::Silent);
    let begun = Instant::now();
    let status = timeout(SOON, ask(stage.address, "/")).await??;
    let waited = begun.elapsed();
    ensure!(status == 504, "a client of an app that hangs gets {status}");
    let operator = stage.until_unhealthy("blue").await?;
    stage.switch("green").await?;
    let recovery = stage.until_answered().await?;
    stage.finish(operator, recovery, vec![format!("504 after {} ms", waited.as_millis())]).await
}

async fn drips(around: FaultConditions) -> Result<Outcome> {
    let (blue, _green, setup) = pair().await?;
    let tables = "[services.app.timeouts]\nread = \"3s\"\n".to_owned();
    let mut stage = Stage::start(&around.dir, StageSetup { tables, ..setup }).await?;
    blue.behave(Manner::Drip);
    stage
        .until("clients wait", async |stage| {
            (stage.backend("blue").await.ok()?.requests_in_flight >= 8).then_some(())
        })
        .await?;
    stage.switch("green").await?;
    let recovery = stage.until_answered().await?;
    let drained = stage.command(&["drain", "blue", "--timeout", "2s", "--cut"]).await?;
    let operator = drained.output.trim().to_owned();
    ensure!(operator.contains("drained in") && !operator.contains(" 0 cut)"), "the drain says: {operator}");
    stage.finish(operator, recovery, Vec::new()).await
}

async fn closes_idle(around: FaultConditions) -> Result<Outcome> {
    let mut retried = 0.0;
    let mut outcome = None;
    for (nth, death) in [Death::End, Death::Reset].into_iter().enumerate() {
        let dir = around.dir.join(nth.to_string());
        std::fs::create_dir(&dir)?;
        let book = Book::default();
        let fickle = fickle::start(death, When::OnArrival, book).await?;
        let green = Scripted::start("green").await?;
        let tables = "[services.app.health]\nenabled = false\n".to_owned();
        let setup = StageSetup { tables, ..StageSetup::at(fickle, green.address) };
        let mut stage = Stage::start(&dir, setup).await?;
        stage.carry(200).await?;
        let line = "uh_proxy_retries_total{service=\"app\",backend=\"blue\",reason=\"stale_connection\"}";
        let now = stage.metric(line).await?;
        ensure!(now > 0.0, "no request hit a dead connection");
        retried += now;
        let operator = format!("retries_total{{reason=\"stale_connection\"}} {retried}");
        outcome = Some(stage.finish(operator, Duration::ZERO, Vec::new()).await?);
    }
    outcome.context("nothing was retried")
}
