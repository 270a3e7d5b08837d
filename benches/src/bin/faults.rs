//! The fault matrix: injects every fault of `uh_benches::faults` into uh-proxy under load, and prints what clients and
//! the operator saw. Fails if a requirement is violated.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Error, Result, anyhow, bail, ensure};
use clap::Parser;
use rustix::process::geteuid;
use uh_benches::faults::{FaultConditions, Outcome, all, table};
use uh_benches::machine::raise_descriptors;
use uh_benches::workdir;

#[derive(Parser)]
#[command(about = "Inject faults into uh-proxy under load, and print what clients and the operator saw")]
struct Options {
    /// Fewer rounds, and only the faults that are quick: about two minutes.
    #[arg(long)]
    short: bool,
    /// Run only faults whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// For internal use: the mount and network namespaces already exist.
    #[arg(long, hide = true)]
    isolated: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !options.isolated && geteuid().is_root() {
        // Continue without: faults that need them are skipped with a message.
        let error = in_own_namespaces();
        drop(writeln!(io::stderr(), "can't create namespaces: {error:#}"));
    }
    workdir::run(async |dir| {
        raise_descriptors()?;
        if options.isolated {
            raise_loopback()?;
        }
        run(&options, dir).await
    })
}

fn raise_loopback() -> Result<()> {
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("can't start ip")?;
    ensure!(status.success(), "can't bring up the loopback device");
    Ok(())
}

/// Runs this program again in its own mount and network namespaces. Returns only if that isn't possible.
fn in_own_namespaces() -> Error {
    let own: [OsString; 3] = ["--mount", "--net", "--"].map(Into::into);
    let probe = Command::new("unshare").args(&own).args(["ip", "link", "set", "lo", "up"]).output();
    match probe {
        Ok(probe) if probe.status.success() => {}
        Ok(probe) => return anyhow!("unshare: {}", String::from_utf8_lossy(&probe.stderr).trim()),
        Err(error) => return Error::from(error).context("can't start unshare"),
    }
    let mut command = Command::new("unshare");
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error.into(),
    };
    command.args(own).arg(program).args(std::env::args_os().skip(1)).arg("--isolated");
    Error::from(command.exec()).context("can't start unshare")
}

async fn run(options: &Options, dir: &Path) -> Result<()> {
    let mut out = io::stdout();
    let mut bad = Vec::new();
    let (mut injected, begun) = (0, Instant::now());
    for (nth, fault) in all().into_iter().enumerate() {
        if (options.short && !fault.in_short) || !fault.name.contains(&options.only) {
            continue;
        }
        let dir = dir.join(nth.to_string());
        fs::create_dir(&dir)?;
        let around =
            FaultConditions { dir: dir.clone(), isolated: options.isolated, thorough: !options.short };
        let complaints = match (fault.run)(around).await {
            Ok(Outcome::Skipped(why)) => {
                writeln!(out, "{}: skipped, {why}\n", fault.name)?;
                continue;
            }
            Ok(Outcome::Seen(seen)) => {
                writeln!(out, "{}", table::entry(&fault, &seen))?;
                fault.complaints(&seen)
            }
            Err(error) => vec![format!("{error:#}")],
        };
        injected += 1;
        for complaint in complaints {
            writeln!(out, "{}: FAILED: {complaint}\n", fault.name)?;
            bad.push(format!("{} ({}): {complaint}", fault.name, dir.display()));
        }
    }
    writeln!(
        out,
        "{injected} faults in {} s. For kill -9 of the controller, run `cargo test --package uh-controller --features fault-points sweep`",
        begun.elapsed().as_secs()
    )?;
    if bad.is_empty() { Ok(()) } else { bail!("{}", bad.join("\n")) }
}
