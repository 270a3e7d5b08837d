//! Prints what the controller's rule does to healthy and to bad deploys, by simulation. No programs, no network.
//!
//! `watch_simulation [DEPLOYS]`: so many deploys in each cell; 10,000 if left out.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use uh_benches::watch_simulation::{Deploy, healthy, simulate};

const SECOND: Duration = Duration::from_secs(1);

const RATES: [f64; 4] = [1.0, 5.0, 20.0, 100.0];

/// Of 10,000 healthy deploys in a cell, more than this rolled back is a fault: the rule promises 0.25 on average.
const MAX_FOUND: usize = 4;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With stderr gone there is nobody left to read it.
            let _ = writeln!(io::stderr(), "watch_simulation: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let deploys = match std::env::args().nth(1) {
        Some(text) => text.parse().context("the number of deploys in each cell")?,
        None => 10_000,
    };
    let mut out = io::stdout();
    writeln!(
        out,
        "Healthy deploys rolled back, of {deploys} in each cell (watch 5m, limit 1 %, 600 s of history)\n"
    )?;
    writeln!(out, "| base errors, interval | {} |", columns())?;
    writeln!(out, "|---|---|---|---|---|")?;
    let mut worst = 0;
    for interval in [SECOND, 10 * SECOND] {
        for errors in [0.0005, 0.003, 0.008] {
            let cells = RATES.map(|rate| simulate(healthy(rate, errors, interval), deploys, 1).found());
            worst = cells.into_iter().fold(worst, usize::max);
            writeln!(out, "| {:.2} %, {} s | {} |", errors * 100.0, interval.as_secs(), joined(cells))?;
        }
    }
    writeln!(
        out,
        "\nSeconds from the switch to the breach, p50 / p90 (found within 5m), base errors 0.3 %\n"
    )?;
    writeln!(out, "| errors of the new version, interval | {} |", columns())?;
    writeln!(out, "|---|---|---|---|---|")?;
    for interval in [SECOND, 10 * SECOND] {
        for errors in [1.0, 0.2, 0.05, 0.02] {
            let cells = RATES.map(|rate| {
                let deploy = Deploy { new_errors: errors, ..healthy(rate, 0.003, interval) };
                let outcomes = simulate(deploy, deploys.min(2000), 2);
                let found = 100.0 * outcomes.found() as f64 / f64::from(outcomes.deploys);
                let at = |share| outcomes.at(share).map_or_else(|| "-".to_owned(), |at| at.to_string());
                format!("{} / {} ({found:.0} %)", at(0.5), at(0.9))
            });
            writeln!(out, "| {:.0} %, {} s | {} |", errors * 100.0, interval.as_secs(), joined(cells))?;
        }
    }
    writeln!(
        out,
        "\nOld versions with errors of their own (20/s, interval 1 s): rolled back, of {}\n",
        deploys.min(2000)
    )?;
    for (old, new) in [(0.03, 0.012), (0.05, 0.05), (0.03, 0.08)] {
        let deploy = Deploy { old_errors: old, new_errors: new, ..healthy(20.0, 0.0, SECOND) };
        let found = simulate(deploy, deploys.min(2000), 3).found();
        writeln!(out, "- {:.1} % → {:.1} %: {found}", old * 100.0, new * 100.0)?;
    }
    let bound = MAX_FOUND.max(MAX_FOUND * deploys as usize / 10_000);
    ensure!(worst <= bound, "{worst} healthy deploys of one cell were rolled back, more than {bound}");
    Ok(())
}

fn columns() -> String {
    RATES.map(|rate| format!("{rate}/s")).join(" | ")
}

fn joined<T: ToString>(cells: [T; 4]) -> String {
    cells.map(|cell| cell.to_string()).join(" | ")
}
