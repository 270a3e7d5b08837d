//! Packets that are lost or late, and names that can't be looked up. In a network namespace of our own.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::late::Late;
use super::stage::{SOON, Stage, StageSetup, apps, ask};
use super::{Fault, FaultConditions, Outcome};
use uh_testkit::process::run;

/// The faults of this file.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "packets lost",
        injected: "1 % of all packets, by a firewall rule; three switches meanwhile",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(lost(around)),
    },
    Fault {
        name: "bytes late",
        injected: "a relay adds 20 ms each way between uh-proxy and its apps, including health checks; three switches meanwhile",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(late(around)),
    },
    Fault {
        name: "names don't resolve",
        injected: "backends by name are removed from /etc/hosts, and the name server doesn't respond; then they are restored",
        may_fail: &[],
        in_short: false,
        run: |around| Box::pin(no_names(around)),
    },
];

async fn succeeds(words: &[&str]) -> bool {
    output_of(words).await.is_ok()
}

async fn output_of(words: &[&str]) -> Result<String> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    let done = run(command, SOON).await?;
    ensure!(done.status.success(), "{}: {}", words[0], done.output);
    Ok(done.output)
}

/// A firewall rule that drops packets, and counts them.
const LOSSY: &[&str] = &[
    "iptables",
    "-A",
    "INPUT",
    "-m",
    "statistic",
    "--mode",
    "random",
    "--probability",
    "0.01",
    "-j",
    "DROP",
];

async fn lost(around: FaultConditions) -> Result<Outcome> {
    if !around.isolated {
        return Ok(Outcome::Skipped("no right to make a network namespace".to_owned()));
    }
    let apps = apps(&around.dir).await?;
    let mut stage = Stage::start(&around.dir, StageSetup::before(&apps)).await?;
    if let Err(error) = output_of(LOSSY).await {
        return Ok(Outcome::Skipped(format!("can't install a lossy firewall rule here: {error:#}")));
    }
    let operator = switch_three_times(&mut stage, around.thorough).await?;
    // The counters stand first in the line of the only rule.
    let counted = output_of(&["iptables", "-L", "INPUT", "-v", "-n", "-x"]).await?;
    let rule = counted.lines().find(|line| line.contains("DROP")).context("the firewall rule is gone")?;
    let dropped: u64 = rule.split_whitespace().next().context("no counter")?.parse()?;
    ensure!(dropped > 0, "no packet was lost: {rule}");
    ensure!(succeeds(&["iptables", "-F", "INPUT"]).await, "can't undo the firewall rule");
    let begun = Instant::now();
    stage.until_answered().await?;
    stage.carry(20).await?;
    stage.finish(operator, begun.elapsed(), vec![format!("{dropped} packets lost")]).await
}

/// How late bytes are, each way.
const LATE: Duration = Duration::from_millis(20);

async fn late(around: FaultConditions) -> Result<Outcome> {
    let apps = apps(&around.dir).await?;
    let (blue, green) = (Late::before(apps.0.address).await?, Late::before(apps.1.address).await?);
    let setup = StageSetup::at(blue.address, green.address);
    let mut stage = Stage::start(&around.dir, setup).await?;
    let hold = |by| [&blue, &green].map(|relay| relay.hold(by));
    hold(LATE);
    let begun = Instant::now();
    ensure!(ask(stage.address, "/").await? == 200, "not answered");
    let waited = begun.elapsed();
    ensure!(waited >= 2 * LATE, "the delay has no effect: a client got its response after {waited:?}");
    let operator = switch_three_times(&mut stage, around.thorough).await?;
    hold(Duration::ZERO);
    let recovery = stage.until_answered().await?;
    stage.finish(operator, recovery, vec![format!("200 after {} ms", waited.as_millis())]).await
}

/// Switches under load, which must take effect as usual. Returns the final `status`.
async fn switch_three_times(stage: &mut Stage, thorough: bool) -> Result<String> {
    for to in ["green", "blue", "green"] {
        stage.carry(if thorough { 1000 } else { 200 }).await?;
        stage.switch(to).await?;
    }
    let status = stage.command(&["status"]).await?.output;
    let line = status.lines().find(|line| line.contains("green has been active"));
    Ok(line.with_context(|| format!("status: {status}"))?.to_owned())
}

async fn no_names(around: FaultConditions) -> Result<Outcome> {
    if !around.isolated {
        return Ok(Outcome::Skipped("no right to mount over /etc/hosts".to_owned()));
    }
    let (hosts, resolv) = (around.dir.join("hosts"), around.dir.join("resolv.conf"));
    let known = "127.0.0.1 localhost blue.test green.test\n";
    fs::write(&hosts, known)?;
    // Nobody listens there, and the packets are dropped: silence.
    fs::write(&resolv, "nameserver 127.0.0.7\noptions timeout:1 attempts:1\n")?;
    let silence = ["iptables", "-A", "INPUT", "-d", "127.0.0.7", "-j", "DROP"];
    let is_silent = succeeds(&silence).await;
    for (file, over) in [(&hosts, "/etc/hosts"), (&resolv, "/etc/resolv.conf")] {
        let file = file.display().to_string();
        ensure!(succeeds(&["mount", "--bind", &file, over]).await, "can't mount over {over}");
    }
    let played = with_names(&around, &hosts, known).await;
    for over in ["/etc/hosts", "/etc/resolv.conf"] {
        ensure!(succeeds(&["umount", "--lazy", over]).await, "can't unmount {over}");
    }
    ensure!(!is_silent || succeeds(&["iptables", "-F", "INPUT"]).await, "can't undo the firewall rule");
    played
}

async fn with_names(around: &FaultConditions, hosts: &std::path::Path, known: &str) -> Result<Outcome> {
    let apps = apps(&around.dir).await?;
    let at = |name: &str, address: std::net::SocketAddr| format!("{name}.test:{}", address.port());
    let setup = StageSetup {
        blue: at("blue", apps.0.address),
        green: at("green", apps.1.address),
        tables: "[services.app.resolve]\ninterval = \"200ms\"\ntimeout = \"500ms\"\n".to_owned(),
        ..StageSetup::default()
    };
    let mut stage = Stage::start(&around.dir, setup).await?;
    stage.listen_anew();
    fs::write(hosts, "127.0.0.1 localhost\n")?;
    let mut operator = String::new();
    for name in ["blue", "green"] {
        // Its last addresses are kept, and the failure is logged once.
        operator = stage
            .until_said(&format!("cannot resolve the name; keeping its last addresses endpoint={name}.test"))
            .await?;
    }
    stage.carry(200).await?;
    stage.switch("green").await?;
    stage.carry(200).await?;
    stage.listen_anew();
    fs::write(hosts, known)?;
    let begun = Instant::now();
    for name in ["blue", "green"] {
        stage.until_said(&format!("name resolved endpoint={name}.test")).await?;
    }
    stage.finish(operator, begun.elapsed(), vec!["a switch meanwhile".to_owned()]).await
}
