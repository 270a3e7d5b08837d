//! Disks that are full or read-only, and state files that are damaged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::stage::{SOON, Stage, StageSetup, apps, ask};
use super::{BROKEN, Fault, FaultConditions, Outcome};
use uh_testkit::process::{program, run};

/// The faults of this file.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "disk full under the state file",
        injected: "a switch on a full disk; then space is freed, and uh-proxy is killed",
        may_fail: BROKEN,
        in_short: true,
        run: |around| Box::pin(state_full(around)),
    },
    Fault {
        name: "disk read-only under the state file",
        injected: "a switch while the file system is mounted read-only; then read-write again",
        may_fail: &[],
        in_short: false,
        run: |around| Box::pin(state_read_only(around)),
    },
    Fault {
        name: "disk full under the access log",
        injected: "no space for lines; then space is freed",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(log_full(around)),
    },
    Fault {
        name: "disk full under the journal",
        injected: "a deploy with a full disk under uh-deploy's state_dir; then space is freed, and it is recovered",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(journal_full(around)),
    },
    Fault {
        name: "state file damaged",
        injected: "uh-proxy starts with a file that is truncated or has one changed byte; for a sweep over every byte, run `cargo test --package uh-proxy damage`",
        may_fail: BROKEN,
        in_short: true,
        run: |around| Box::pin(state_damaged(around)),
    },
];

/// A small file system of its own, in a mount namespace of ours.
struct Disk {
    path: PathBuf,
}

impl Disk {
    async fn mount(path: &Path, size: &str) -> Result<Self> {
        fs::create_dir_all(path)?;
        let disk = Self { path: path.to_owned() };
        // Mode 0700, as the admin socket's and the controller's directories demand.
        disk.command("mount", &["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"]).await?;
        Ok(disk)
    }

    async fn remount(&self, option: &str) -> Result<()> {
        self.command("mount", &["-o", &format!("remount,{option}")]).await
    }

    async fn command(&self, program: &str, args: &[&str]) -> Result<()> {
        let mut command = Command::new(program);
        command.args(args).arg(&self.path);
        let done = run(command, SOON).await?;
        ensure!(done.status.success(), "{program}: {}", done.output);
        Ok(())
    }

    /// Fills the disk.
    fn fill(&self) -> Result<()> {
        use std::io::Write as _;
        let mut file = fs::File::create(self.path.join("filler"))?;
        for size in [4096, 1] {
            while file.write(&vec![b'x'; size]).is_ok_and(|written| written > 0) {}
        }
        Ok(())
    }

    fn make_room(&self) -> Result<()> {
        Ok(fs::remove_file(self.path.join("filler"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A process that still has files open there keeps it until the namespace ends.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

fn skipped() -> Result<Outcome> {
    Ok(Outcome::Skipped("no right to mount here".to_owned()))
}

async fn state_full(around: FaultConditions) -> Result<Outcome> {
    if !around.isolated {
        return skipped();
    }
    let apps = apps(&around.dir).await?;
    let disk = Disk::mount(&around.dir.join("state"), "64k").await?;
    let mut stage = Stage::start(&around.dir, StageSetup::before(&apps)).await?;
    disk.fill()?;
    let switched = stage.switch("green").await?;
    ensure!(switched.changed && !switched.persisted, "on a full disk: {switched:?}");
    let told = stage.command(&["switch", "green"]).await?;
    ensure!(told.status.code() == Some(5), "the command line ends with {}", told.status);
    let operator = stage.until_said("cannot write the state file").await?;
    stage.listen_anew();
    disk.make_room()?;
    let begun = Instant::now();
    stage.until_said("the state file is saved again").await?;
    let recovery = begun.elapsed();
    stage.take_front()?.process.kill()?;
    stage.start_front().await?;
    stage.until_answered().await?;
    stage.finish(operator, recovery, vec!["a restart keeps the switch".to_owned()]).await
}

async fn state_read_only(around: FaultConditions) -> Result<Outcome> {
    if !around.isolated {
        return skipped();
    }
    let apps = apps(&around.dir).await?;
    let disk = Disk::mount(&around.dir.join("state"), "64k").await?;
    let stage = Stage::start(&around.dir, StageSetup::before(&apps)).await?;
    // The lock file is open for writing, so the whole file system can only be made read-only by force.
    let Ok(()) = disk.remount("ro").await else { return read_only_by_bind(stage, disk).await };
    finish_read_only(stage, disk, false).await
}

/// Makes it read-only for files opened from now on.
async fn read_only_by_bind(stage: Stage, disk: Disk) -> Result<Outcome> {
    let path = disk.path.display().to_string();
    for args in [vec!["--bind", &path], vec!["-o", "remount,bind,ro"]] {
        disk.command("mount", &args).await?;
    }
    finish_read_only(stage, disk, true).await
}

async fn finish_read_only(mut stage: Stage, disk: Disk, bound: bool) -> Result<Outcome> {
    let switched = stage.switch("green").await?;
    ensure!(switched.changed && !switched.persisted, "on a read-only disk: {switched:?}");
    let operator = stage.until_said("cannot write the state file").await?;
    stage.listen_anew();
    let begun = Instant::now();
    if bound {
        disk.command("umount", &["--lazy"]).await?;
    } else {
        disk.remount("rw").await?;
    }
    stage.until_said("the state file is saved again").await?;
    stage.finish(operator, begun.elapsed(), Vec::new()).await
}

async fn log_full(around: FaultConditions) -> Result<Outcome> {
    if !around.isolated {
        return skipped();
    }
    let apps = apps(&around.dir).await?;
    let disk = Disk::mount(&around.dir.join("logs"), "64k").await?;
    let log = around.dir.join("logs/access.jsonl");
    let server = format!("access_log = {{ path = {:?}, format = \"json\" }}", log.display().to_string());
    let mut stage = Stage::start(&around.dir, StageSetup { server, ..StageSetup::before(&apps) }).await?;
    disk.fill()?;
    let operator = stage.until_said("cannot write the access log").await?;
    stage.carry(100).await?;
    let lost = stage.metric("uh_proxy_access_log_lines_lost_total").await?;
    ensure!(lost > 0.0, "lines are lost without being counted");
    let before = fs::metadata(&log)?.len();
    disk.make_room()?;
    let begun = Instant::now();
    stage
        .until("lines are written again", async |_| (fs::metadata(&log).ok()?.len() > before).then_some(()))
        .await?;
    let recovery = begun.elapsed();
    stage.carry(50).await?;
    let text = fs::read_to_string(&log)?;
    let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    let bad = whole.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_err()).count();
    ensure!(bad <= 1, "{bad} lines are invalid; only the truncated one may be");
    stage.finish(operator, recovery, vec![format!("{lost} lines lost and counted, {bad} truncated")]).await
}

async fn journal_full(around: FaultConditions) -> Result<Outcome> {
    if !around.isolated {
        return skipped();
    }
    let apps = apps(&around.dir).await?;
    let disk = Disk::mount(&around.dir.join("deploys"), "256k").await?;
    let mut stage = Stage::start(&around.dir, StageSetup::before(&apps)).await?;
    let config = around.dir.join("uh-deploy.toml");
    let text = |path: PathBuf| serde_json::Value::from(path.display().to_string()).to_string();
    // What a deploy would start is of no interest here: it never gets that far, or fails at once.
    fs::write(
        &config,
        format!(
            "[deploy]\nadmin_socket = {}\nstate_dir = {}\n[backends.blue]\nendpoints = [\"{}\"]\n[backends.green]\n\
             endpoints = [\"{}\"]\n[health]\ninterval = \"100ms\"\n[runtime.process]\ncommand = [\"/bin/false\"]\n",
            text(stage.admin.socket().to_owned()),
            text(disk.path.clone()),
            apps.0.address,
            apps.1.address
        ),
    )?;
    let deploy = |args: &'static [&'static str]| {
        let mut command = Command::new(program("uh-deploy")?);
        command.arg("--config").arg(&config).args(args);
        Ok::<_, anyhow::Error>(command)
    };
    // Once with room, so that the files are there; it fails, as its app ends at once.
    let first = run(deploy(&["blue-green", "--version", "1"])?, SOON).await?;
    ensure!(
        first.status.code() == Some(1),
        "a deploy of what ends at once: {}\n{}",
        first.status,
        first.output
    );
    let mut operator = String::new();
    let mut rounds = 0;
    // Another page of room each time, so that another file is the one that finds the disk full.
    for pages in 0..if around.thorough { 12 } else { 4 } {
        disk.fill()?;
        let filler = fs::OpenOptions::new().write(true).open(disk.path.join("filler"))?;
        filler.set_len(filler.metadata()?.len().saturating_sub(pages * 4096))?;
        let full = run(deploy(&["blue-green", "--version", "2"])?, SOON).await?;
        ensure!(full.status.code() != Some(0), "a deploy on a full disk succeeds");
        if full.output.contains("No space left") {
            operator = full
                .output
                .lines()
                .find(|line| line.contains("No space left"))
                .unwrap_or_default()
                .trim()
                .to_owned();
        }
        disk.make_room()?;
        rounds += 1;
        let recovered = run(deploy(&["recover"])?, SOON).await?;
        ensure!(
            recovered.status.code() == Some(0),
            "recover after a full disk: {}\n{}",
            recovered.status,
            recovered.output
        );
    }
    ensure!(!operator.is_empty(), "no deploy says that the disk is full");
    let mut too_large = 0;
    // A limit of the size of files is met within a line more often than the end of a disk, which is one of pages.
    for half_kib in 1..=if around.thorough { 12 } else { 4 } {
        let mut limited = Command::new("sh");
        limited.args([
            "-c",
            "trap '' XFSZ; ulimit -f \"$1\"; shift; exec \"$@\"",
            "sh",
            &half_kib.to_string(),
        ]);
        let whole = deploy(&["blue-green", "--version", "2"])?;
        limited.arg(whole.get_program()).args(whole.get_args());
        let full = run(limited, SOON).await?;
        too_large += usize::from(full.output.contains("File too large"));
        rounds += 1;
        let recovered = run(deploy(&["recover"])?, SOON).await?;
        ensure!(
            recovered.status.code() == Some(0),
            "recover after a file may be no longer than {half_kib} half KiB: {}\n{}\nbefore: {}",
            recovered.status,
            recovered.output,
            full.output
        );
    }
    ensure!(too_large > 0, "no deploy says that a file is too large");
    let begun = Instant::now();
    let after = run(deploy(&["blue-green", "--version", "3"])?, SOON).await?;
    ensure!(after.status.code() == Some(1), "the next deploy: {}\n{}", after.status, after.output);
    ensure!(stage.until_answered().await? < SOON, "not answered");
    stage
        .finish(operator, begun.elapsed(), vec![format!("{rounds} deploys without an effect on clients")])
        .await
}

async fn state_damaged(around: FaultConditions) -> Result<Outcome> {
    let apps = apps(&around.dir).await?;
    let mut stage = Stage::start(&around.dir, StageSetup::before(&apps)).await?;
    stage.switch("green").await?;
    let file = stage.state_dir.join(".deployment-state.json");
    let copy = stage.state_dir.join(".deployment-state.json.last-good");
    let (mut operator, mut slowest, mut rounds) = (String::new(), Duration::ZERO, 0);
    let share = if around.thorough { 24 } else { 4 };
    for nth in 0..share {
        // What is written now is the same in both.
        let good = stage
            .until("the copy is as the file", async |_| {
                let text = fs::read(&file).ok()?;
                (fs::read(&copy).ok()? == text).then_some(text)
            })
            .await?;
        stage.take_front()?.process.kill()?;
        let at = good.len() * nth / share;
        let mut bad = good.clone();
        if nth % 2 == 0 {
            bad.truncate(at);
        } else {
            bad[at] ^= 1;
        }
        fs::write(&file, &bad)?;
        let begun = Instant::now();
        stage.start_front().await?;
        stage.until_answered().await?;
        slowest = slowest.max(begun.elapsed());
        let status = ask(stage.address, "/").await?;
        ensure!(status == 200, "after damage at byte {at}: status {status}");
        ensure!(
            stage.backend("green").await?.role == uh_protocol::status::Role::Active,
            "damage at byte {at} changed the active backend"
        );
        operator = stage.until_said("using the last-good copy").await?;
        rounds += 1;
    }
    stage.finish(operator, slowest, vec![format!("{rounds} starts, each with green active")]).await
}
