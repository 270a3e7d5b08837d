//! Simulates what the watch's rule does to healthy and bad deploys. Needs no programs and no network.
//!
//! A watch that only reports judges by its own requests; one with `--auto-rollback` checks a suspicion with the old version.
//!
//! `cargo bench -p uh-controller --bench watch_simulation [DEPLOYS]` prints the tables for this many deploys in each
//! cell (10,000 by default). `cargo test` runs a short form. Both fail if the rule is worse than documented.

mod cross_checks;
mod simulation;

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cross_checks::Checked;
use simulation::{Deploy, Outcomes, healthy, simulate};

const SECOND: Duration = Duration::from_secs(1);

const INTERVALS: [Duration; 2] = [SECOND, Duration::from_secs(10)];

const RATES: [f64; 4] = [1.0, 5.0, 20.0, 100.0];

/// The new version's error rate, and the seconds within which nine in ten are found, at 100 requests/s and ticks of a
/// second.
const BAD: [(f64, Option<f64>); 4] = [(1.0, Some(1.0)), (0.2, Some(2.0)), (0.05, Some(8.0)), (0.02, None)];

/// How long both versions fail, and which share of requests.
const OUTAGES: [(&str, Option<(Duration, f64)>); 4] = [
    ("none", None),
    ("2 s, all", Some((Duration::from_secs(2), 1.0))),
    ("10 s, 30 %", Some((Duration::from_secs(10), 0.3))),
    ("30 s, 30 %", Some((Duration::from_secs(30), 0.3))),
];

/// An outage rolls back at most one in so many healthy deploys: what the coin guarantees.
const OUTAGE_SHARE: f64 = 200.0;

/// And on average over all cells.
const AVERAGE_SHARE: f64 = 500.0;

/// With `--auto-rollback`: the new version's error rate, and the seconds within which nine in ten are found, at each of `RATES`.
const CHECKED_BAD: [(f64, [Option<f64>; 4]); 4] = [
    (1.0, [Some(35.0), Some(8.0), Some(3.0), Some(3.0)]),
    (0.3, [None, Some(30.0), Some(9.0), Some(6.0)]),
    (0.2, [None, None, None, Some(6.0)]),
    (0.05, [None, None, None, Some(15.0)]),
];

/// How many clients send the requests: many, and fewer than the coin needs.
const CLIENTS: [u32; 2] = [1000, 12];

/// The most of 10,000 healthy deploys in a cell that may be rolled back: the rule guarantees 0.25 on average.
const MAX_FOUND: usize = 4;

/// Deploys in each cell: for the tables, and for the short form.
const LONG: u32 = 10_000;
const SHORT: u32 = 400;

/// Bad deploys with `--auto-rollback` take longer to simulate, so they are this part of it.
const BAD_PART: u32 = 4;

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
    let deploys = deploys.min(2000);
    bad_deploys(&mut out, deploys)?;
    old_errors(&mut out, deploys)?;
    // All tables are printed, also if the first one has failed.
    let outages = checked_outages(&mut out, if long { deploys } else { deploys / 2 });
    checked_bad(&mut out, deploys / BAD_PART)?;
    outages
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

/// With `--auto-rollback`, an outage of both versions isn't taken for a fault of the new one.
fn checked_outages(out: &mut impl Write, deploys: u32) -> Result<()> {
    writeln!(
        out,
        "\nHealthy deploys with --auto-rollback, rolled back, of {deploys}; both versions fail 0.3 %\n"
    )?;
    writeln!(out, "| outage of both, clients | {} |", columns())?;
    writeln!(out, "|---|---|---|---|---|")?;
    let (mut all, mut cells, mut worst) = (0, 0, 0);
    for clients in CLIENTS {
        for (name, outage) in OUTAGES {
            let found = RATES.map(|rate| {
                let deploy = Checked { outage, clients, ..checked(rate, 0.003) };
                cross_checks::simulate(deploy, deploys, 4).found()
            });
            all += found.iter().sum::<usize>();
            cells += found.len();
            worst = found.into_iter().fold(worst, usize::max);
            writeln!(out, "| {name}, {clients} | {} |", joined(found))?;
        }
    }
    writeln!(out, "\n{all} together")?;
    // What is guaranteed on average is exceeded by chance in a cell, but not by three standard deviations.
    let guaranteed = f64::from(deploys) / OUTAGE_SHARE;
    let bound = guaranteed + 3.0 * guaranteed.sqrt();
    ensure!(
        worst as f64 <= bound,
        "an outage of both rolled back {worst} of {deploys} healthy deploys, more than {bound:.0}"
    );
    let bound = f64::from(deploys) * cells as f64 / AVERAGE_SHARE;
    ensure!(all as f64 <= bound, "outages of both rolled back {all} healthy deploys, more than {bound:.0}");
    Ok(())
}

fn checked_bad(out: &mut impl Write, deploys: u32) -> Result<()> {
    writeln!(
        out,
        "\nBad deploys with --auto-rollback: seconds from the switch, p50 / p90 (found within 5m), base errors 0.3 %\n"
    )?;
    writeln!(out, "| errors of the new version, clients | {} |", columns())?;
    writeln!(out, "|---|---|---|---|---|")?;
    for clients in CLIENTS {
        for (errors, bounds) in CHECKED_BAD {
            let outcomes = RATES.map(|rate| {
                let deploy = Checked { new_errors: errors, clients, ..checked(rate, 0.003) };
                cross_checks::simulate(deploy, deploys, 5)
            });
            let cells = joined(outcomes.each_ref().map(found));
            writeln!(out, "| {:.0} %, {clients} | {cells} |", errors * 100.0)?;
            for (rate, (outcomes, bound)) in RATES.iter().zip(outcomes.iter().zip(bounds)) {
                let Some(bound) = bound.filter(|_| clients == CLIENTS[0]) else { continue };
                let (found, p90) = (outcomes.found(), outcomes.at(0.9));
                ensure!(
                    found == deploys as usize && p90.is_some_and(|p90| p90 <= bound),
                    "{errors} of errors at {rate}/s: {found} of {deploys} found, nine in ten after {p90:?} s"
                );
            }
        }
    }
    Ok(())
}

/// A deploy without an outage; both versions fail this share.
fn checked(rate: f64, errors: f64) -> Checked {
    let history = Duration::from_secs(600);
    Checked { rate, clients: CLIENTS[0], old_errors: errors, new_errors: errors, outage: None, history }
}

/// Half and nine in ten are found after so many seconds, and how many are.
fn found(outcomes: &Outcomes) -> String {
    let found = 100.0 * outcomes.found() as f64 / f64::from(outcomes.deploys);
    let at = |share| outcomes.at(share).map_or_else(|| "-".to_owned(), |at| format!("{at:.1}"));
    format!("{} / {} ({found:.0} %)", at(0.5), at(0.9))
}

fn columns() -> String {
    RATES.map(|rate| format!("{rate}/s")).join(" | ")
}

fn joined<T: ToString>(cells: [T; 4]) -> String {
    cells.map(|cell| cell.to_string()).join(" | ")
}
