//! Packets that are lost or late, and names that can't be looked up. In a network namespace of our own.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::stage::{SOON, Setup, Stage, apps};
use super::{Fault, Outcome, Surroundings};
use crate::process::run;

/// Those of this file.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "packets lost and late",
        injected: "1 % of all packets lost and 10 ms late, or the nearest to it that the kernel has; three switches meanwhile",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(loss(around)),
    },
    Fault {
        name: "names not looked up",
        injected: "backends by name; /etc/hosts loses them, and the name server is silent; then they are back",
        may_fail: &[],
        in_short: false,
        run: |around| Box::pin(no_names(around)),
    },
];

async fn succeeds(words: &[&str]) -> bool {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    run(command, SOON).await.is_ok_and(|done| done.status.success())
}

async fn loss(around: Surroundings) -> Result<Outcome> {
    if !around.isolated {
        return Ok(Outcome::Skipped("no right to make a network namespace".to_owned()));
    }
    let apps = apps(&around.dir).await?;
    let mut stage = Stage::start(&around.dir, Setup::before(&apps)).await?;
    let netem = ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "10ms", "5ms", "loss", "1%"];
    // Where the kernel has no netem: the same loss by a firewall rule, and delay by a queue before a slow line.
    let lossy = [
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
    let slow = [
        "tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "20mbit", "burst", "16kb", "latency",
        "100ms",
    ];
    let (what, undo): (&str, &[&[&str]]) = if succeeds(&netem).await {
        ("netem: 10 ± 5 ms, 1 % lost", &[&["tc", "qdisc", "del", "dev", "lo", "root"]])
    } else if succeeds(&lossy).await {
        if succeeds(&slow).await {
            (
                "no netem in this kernel: 1 % lost by iptables, 20 Mbit/s by tbf",
                &[&["iptables", "-F", "INPUT"], &["tc", "qdisc", "del", "dev", "lo", "root"]],
            )
        } else {
            ("no netem in this kernel: 1 % lost by iptables", &[&["iptables", "-F", "INPUT"]])
        }
    } else {
        return Ok(Outcome::Skipped("neither netem nor a lossy firewall rule can be had".to_owned()));
    };
    for to in ["green", "blue", "green"] {
        stage.carry(if around.thorough { 1000 } else { 200 }).await?;
        stage.switch(to).await?;
    }
    for command in undo {
        ensure!(succeeds(command).await, "can't undo: {command:?}");
    }
    let begun = Instant::now();
    stage.until_answered().await?;
    stage.carry(20).await?;
    let status = stage.command(&["status"]).await?.output;
    let operator =
        status.lines().find(|line| line.contains("green is active")).unwrap_or_default().to_owned();
    stage.finish(operator, begun.elapsed(), vec![what.to_owned(), "3 switches".to_owned()]).await
}

async fn no_names(around: Surroundings) -> Result<Outcome> {
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

async fn with_names(around: &Surroundings, hosts: &std::path::Path, known: &str) -> Result<Outcome> {
    let apps = apps(&around.dir).await?;
    let at = |name: &str, address: std::net::SocketAddr| format!("{name}.test:{}", address.port());
    let setup = Setup {
        blue: at("blue", apps.0.address),
        green: at("green", apps.1.address),
        tables: "[services.app.resolve]\ninterval = \"200ms\"\ntimeout = \"500ms\"\n".to_owned(),
        ..Setup::default()
    };
    let mut stage = Stage::start(&around.dir, setup).await?;
    stage.listen_anew();
    fs::write(hosts, "127.0.0.1 localhost\n")?;
    let mut operator = String::new();
    for name in ["blue", "green"] {
        // Its last addresses stay, and it is told once.
        operator = stage
            .until_said(&format!("name not looked up; its last addresses stay endpoint={name}.test"))
            .await?;
    }
    stage.carry(200).await?;
    stage.switch("green").await?;
    stage.carry(200).await?;
    stage.listen_anew();
    fs::write(hosts, known)?;
    let begun = Instant::now();
    for name in ["blue", "green"] {
        stage.until_said(&format!("name looked up endpoint={name}.test")).await?;
    }
    stage.finish(operator, begun.elapsed(), vec!["a switch meanwhile".to_owned()]).await
}
