//! Simulates what the watch's rule does to healthy and bad deploys. Needs no programs and no network.
//!
//! `cargo bench -p uh-controller --bench watch_simulation [DEPLOYS]` prints the tables for this many deploys in each
//! cell (10,000 by default). `cargo test` runs a short form. Both fail if the rule is worse than documented.

mod simulation;

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use simulation::{Deploy, healthy, simulate};

const SECOND: Duration = Duration::from_secs(1);

const INTERVALS: [Duration; 2] = [SECOND, Duration::from_secs(10)];

const RATES: [f64; 4] = [1.0, 5.0, 20.0, 100.0];

/// The new version's error rate, and the seconds within which nine in ten are found, at 100 requests/s and ticks of a
/// second.
const BAD: [(f64, Option<f64>); 4] = [(1.0, Some(1.0)), (0.2, Some(2.0)), (0.05, Some(8.0)), (0.02, None)];

/// The most of 10,000 healthy deploys in a cell that may be rolled back: the rule guarantees 0.25 on average.
const MAX_FOUND: usize = 4;

/// Deploys in each cell: for the tables, and for the short form.
const LONG: u32 = 10_000;
const SHORT: u32 = 400;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Cargo passes this argument for benchmarks, but not for tests.
    let long = arguments.iter().any(|argument| argument == "--bench");
    let number = arguments.iter().find(|argument| !argument.starts_with('-') && long);
    let deploys = match number {
        Some(text) => text.parse().context("the number of deploys in each cell")?,
        None if long => LONG,
        None => SHORT,
    };
    let mut out = io::stdout();
    healthy_deploys(&mut out, deploys)?;
    bad_deploys(&mut out, deploys.min(2000))?;
    old_errors(&mut out, deploys.min(2000))
}

fn healthy_deploys(out: &mut impl Write, deploys: u32) -> Result<()> {
    writeln!(
        out,
        "Healthy deploys rolled back, of {deploys} in each cell (watch 5m, limit 1 %, 600 s of history)\n"
    )?;
    writeln!(out, "| base errors, interval | {} |", columns())?;
    writeln!(out, "|---|---|---|---|---|")?;
    let mut worst = 0;
    for interval in INTERVALS {
        for errors in [0.0005, 0.003, 0.008] {
            let cells = RATES.map(|rate| simulate(healthy(rate, errors, interval), deploys, 1).found());
            worst = cells.into_iter().fold(worst, usize::max);
            writeln!(out, "| {:.2} %, {} s | {} |", errors * 100.0, interval.as_secs(), joined(cells))?;
        }
    }
    let bound = (MAX_FOUND * deploys as usize / LONG as usize).max(1);
    ensure!(worst <= bound, "{worst} healthy deploys of one cell were rolled back, more than {bound}");
    Ok(())
}

fn bad_deploys(out: &mut impl Write, deploys: u32) -> Result<()> {
    writeln!(
        out,
        "\nSeconds from the switch to the breach, p50 / p90 (found within 5m), base errors 0.3 %\n"
    )?;
    writeln!(out, "| errors of the new version, interval | {} |", columns())?;
    writeln!(out, "|---|---|---|---|---|")?;
    for interval in INTERVALS {
        for (errors, bound) in BAD {
            let outcomes = RATES.map(|rate| {
                simulate(Deploy { new_errors: errors, ..healthy(rate, 0.003, interval) }, deploys, 2)
            });
            let [.., fastest] = &outcomes;
            if let (Some(bound), SECOND) = (bound, interval) {
                let p90 = fastest.at(0.9);
                ensure!(
                    fastest.found() == deploys as usize && p90.is_some_and(|p90| p90 <= bound),
                    "{errors} of errors: {} of {deploys} found, nine in ten after {p90:?} s",
                    fastest.found()
                );
            }
            let cells = outcomes.each_ref().map(|outcomes| {
                let found = 100.0 * outcomes.found() as f64 / f64::from(outcomes.deploys);
                let at = |share| outcomes.at(share).map_or_else(|| "-".to_owned(), |at| at.to_string());
                format!("{} / {} ({found:.0} %)", at(0.5), at(0.9))
            });
            writeln!(out, "| {:.0} %, {} s | {} |", errors * 100.0, interval.as_secs(), joined(cells))?;
        }
    }
    Ok(())
}

/// A version that is no worse than a bad old one isn't rolled back.
fn old_errors(out: &mut impl Write, deploys: u32) -> Result<()> {
    writeln!(
        out,
        "\nOld versions with errors of their own (20/s, interval 1 s): rolled back, of {deploys}\n"
    )?;
    for (old, new) in [(0.03, 0.012), (0.05, 0.05), (0.03, 0.08)] {
        let deploy = Deploy { old_errors: old, new_errors: new, ..healthy(20.0, 0.0, SECOND) };
        let found = simulate(deploy, deploys, 3).found();
        writeln!(out, "- {:.1} % → {:.1} %: {found}", old * 100.0, new * 100.0)?;
        ensure!(new > old || found == 0, "{found} versions that are no worse were rolled back");
    }
    Ok(())
}

fn columns() -> String {
    RATES.map(|rate| format!("{rate}/s")).join(" | ")
}

fn joined<T: ToString>(cells: [T; 4]) -> String {
    cells.map(|cell| cell.to_string()).join(" | ")
}
