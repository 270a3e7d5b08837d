//! Simulates what the rule of a trial does to healthy and bad versions. Needs no programs and no network.
//!
//! `cargo bench -p uh-trial --bench trial_simulation [TRIALS]` prints the tables, with this many trials in each cell of
//! the healthy grid (10,000 by default). `cargo test` runs a short form. Both fail if the rule is worse than documented in
//! `docs/trials.md`.

mod simulation;

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use simulation::{Outage, Outcomes, Pauses, World, simulate};

/// Trials in each cell of the healthy grid: for the tables, and for the short form.
const LONG: u32 = 10_000;
const SHORT: u32 = 20;

/// Of the healthy trials in the whole grid, at most 1 of so many may be stopped.
const HEALTHY: u32 = 10_000;

/// In an outage of both versions, at most 1 of so many: what E₁ guarantees alone.
const IN_OUTAGE: u32 = 200;

/// How far a detection time and a share may be from the documented one.
const TOLERANCE: f64 = 0.2;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Cargo passes this argument for benchmarks, but not for tests.
    let long = arguments.iter().any(|argument| argument == "--bench");
    let number = arguments.iter().find(|argument| !argument.starts_with('-') && long);
    let trials = match number {
        Some(text) => text.parse().context("the number of trials in each cell")?,
        None if long => LONG,
        None => SHORT,
    };
    let mut out = io::stdout();
    let mut cells = Cells::default();
    healthy_grid(&mut out, &mut cells, trials, long)?;
    outages(&mut out, &mut cells, trials.div_ceil(5), long)?;
    clients_that_come_again(&mut out, &mut cells, trials.div_ceil(5), long)?;
    pauses(&mut out, &mut cells, trials, long)?;
    detection(&mut out, &mut cells, trials.div_ceil(5), long)
}

/// Runs the cells of all tables, each with a seed of its own.
#[derive(Default)]
struct Cells {
    seed: u64,
}

impl Cells {
    fn run(&mut self, world: World, trials: u32) -> Outcomes {
        self.seed += 1;
        simulate(world, trials, self.seed)
    }
}

/// The request rates of the healthy grid. The short form leaves out the most expensive one.
fn rates(long: bool) -> &'static [f64] {
    if long { &[1.0, 5.0, 20.0, 100.0, 500.0] } else { &[1.0, 5.0, 20.0] }
}

fn healthy_grid(out: &mut impl Write, cells: &mut Cells, trials: u32, long: bool) -> Result<()> {
    writeln!(
        out,
        "Healthy versions stopped, of {trials} in each cell; 4 % of requests are slow on both sides\n"
    )?;
    let rates = rates(long);
    writeln!(out, "| fails \\ requests/s | {} |\n|---{}|", joined(rates), "|---".repeat(rates.len()))?;
    let (mut all, mut stopped) = (0, 0);
    for fails in [0.0, 0.0005, 0.003, 0.008, 0.03] {
        let mut row = Vec::new();
        for rate in rates {
            let world = World { slow: (0.04, 0.04), ..World::healthy(*rate, fails) };
            row.push(cells.run(world, trials).stopped());
        }
        all += trials * rates.len() as u32;
        stopped += row.iter().sum::<usize>();
        writeln!(out, "| {} % | {} |", percent(fails), joined(&row))?;
    }
    writeln!(out, "\nTogether: {stopped} of {all}\n")?;
    is_at_most("healthy versions", stopped, all, HEALTHY)
}

fn outages(out: &mut impl Write, cells: &mut Cells, trials: u32, long: bool) -> Result<()> {
    writeln!(
        out,
        "Healthy versions stopped in an outage of both, or at four times the old rate; {trials} in each cell\n"
    )?;
    let rates: &[f64] = if long { &[5.0, 20.0, 100.0] } else { &[20.0] };
    writeln!(out, "| outage | {} |\n|---{}|", joined(rates), "|---".repeat(rates.len()))?;
    let outage = |seconds, fails| Some(Outage { seconds, fails });
    let shapes = [
        ("1 s, 100 %", outage(1.0, 1.0), 1.0),
        ("2 s, 30 %", outage(2.0, 0.3), 1.0),
        ("10 s, 30 %", outage(10.0, 0.3), 1.0),
        ("30 s, 30 %", outage(30.0, 0.3), 1.0),
        ("30 s, 2 %", outage(30.0, 0.02), 1.0),
        ("both fail four times as often as before", None, 4.0),
    ];
    let (mut all, mut stopped) = (0, 0);
    for (name, outage, times) in shapes {
        let mut row = Vec::new();
        for rate in rates {
            let world = World { outage, before: 0.003, ..World::healthy(*rate, 0.003 * times) };
            row.push(cells.run(world, trials).stopped());
        }
        all += trials * rates.len() as u32;
        stopped += row.iter().sum::<usize>();
        writeln!(out, "| {name} | {} |", joined(&row))?;
    }
    writeln!(out, "\nTogether: {stopped} of {all}\n")?;
    is_at_most("healthy versions in an outage", stopped, all, IN_OUTAGE)
}

fn clients_that_come_again(out: &mut impl Write, cells: &mut Cells, trials: u32, long: bool) -> Result<()> {
    writeln!(
        out,
        "Healthy versions stopped if failures come from the same clients; {trials} in each cell\n"
    )?;
    let rates: &[f64] = if long { &[5.0, 20.0, 100.0] } else { &[20.0] };
    writeln!(out, "| clients | {} |\n|---{}|", joined(rates), "|---".repeat(rates.len()))?;
    let shapes: [(&str, &dyn Fn(World) -> World); 3] = [
        ("each repeats a failed request 4 times", &|world| World { repeats: 4.0, clients: 100_000, ..world }),
        ("1,000, of whom 3 always fail", &|world| World { clients: 1000, always_fail: 3, ..world }),
        ("better than before: 3 → 1.2 %", &|world| World { fails: (0.03, 0.012), before: 0.03, ..world }),
    ];
    let (mut all, mut stopped) = (0, 0);
    for (name, shape) in shapes {
        let mut row = Vec::new();
        for rate in rates {
            row.push(cells.run(shape(World::healthy(*rate, 0.003)), trials).stopped());
        }
        all += trials * rates.len() as u32;
        stopped += row.iter().sum::<usize>();
        writeln!(out, "| {name} | {} |", joined(&row))?;
    }
    writeln!(out, "\nTogether: {stopped} of {all}\n")?;
    is_at_most("healthy versions with such clients", stopped, all, HEALTHY)
}

fn pauses(out: &mut impl Write, cells: &mut Cells, trials: u32, long: bool) -> Result<()> {
    writeln!(
        out,
        "Healthy versions stopped if processes pause, as none did before; {trials} in each cell\n"
    )?;
    let rates: &[f64] = if long { &[5.0, 20.0, 100.0] } else { &[20.0] };
    writeln!(out, "| pauses | {} |\n|---{}|", joined(rates), "|---".repeat(rates.len()))?;
    let pauses = |every, lasts, together| Pauses { every, lasts, together };
    let shapes = [
        ("each for 100 ms, every 0.5 s", pauses(0.5, 0.1, false)),
        ("each for 100 ms, every 2 s", pauses(2.0, 0.1, false)),
        ("each for 300 ms, every 5 s", pauses(5.0, 0.3, false)),
        ("each for 1 s, every 10 s", pauses(10.0, 1.0, false)),
        ("each for 3 s, every 60 s", pauses(60.0, 3.0, false)),
        ("both for 500 ms, every 5 s", pauses(5.0, 0.5, true)),
    ];
    let (mut all, mut stopped) = (0, 0);
    for (name, pauses) in shapes {
        let mut row = Vec::new();
        for rate in rates {
            let world = World {
                pauses: Some(pauses),
                slow: (0.04, 0.04),
                clients: 1000,
                ..World::healthy(*rate, 0.0)
            };
            row.push(cells.run(world, trials).stopped());
        }
        all += trials * rates.len() as u32;
        stopped += row.iter().sum::<usize>();
        writeln!(out, "| {name} | {} |", joined(&row))?;
    }
    writeln!(out, "\nTogether: {stopped} of {all}\n")?;
    is_at_most("healthy versions that pause", stopped, all, HEALTHY)
}

/// A bad version, the requests per second, and what is documented: the share found, and the seconds until half and nine in
/// ten of those were.
struct Row {
    name: &'static str,
    world: fn(f64) -> World,
    found: [(f64, f64, f64, f64); 3],
}

fn fails(rate: f64, old: f64, new: f64) -> World {
    World { fails: (old, new), ..World::healthy(rate, old) }
}

/// Judged from the first request on: the warm-up would be added.
fn slow(rate: f64, old: f64, new: f64) -> World {
    World { slow: (old, new), warm_up: Duration::ZERO, ..World::healthy(rate, 0.0) }
}

/// The figures for failures are those of an independent simulation, in C, from which the defaults were chosen. Those for
/// slowness are from this one, when windows were added to the rule.
const ROWS: [Row; 11] = [
    Row {
        name: "0.3 → 5.3 % fail",
        world: |rate| fails(rate, 0.003, 0.053),
        found: [(100.0, 1.0, 5.7, 9.3), (20.0, 1.0, 29.1, 46.2), (5.0, 0.997, 131.8, 202.8)],
    },
    Row {
        name: "0.05 → 5.05 % fail",
        world: |rate| fails(rate, 0.0005, 0.0505),
        found: [(100.0, 1.0, 4.7, 7.1), (20.0, 1.0, 23.0, 35.0), (5.0, 1.0, 104.0, 162.0)],
    },
    Row {
        name: "0.05 → 20 % fail",
        world: |rate| fails(rate, 0.0005, 0.2),
        found: [(100.0, 1.0, 1.5, 2.7), (20.0, 1.0, 7.8, 13.1), (5.0, 1.0, 37.2, 56.3)],
    },
    Row {
        name: "0.05 → 100 % fail",
        world: |rate| fails(rate, 0.0005, 1.0),
        found: [(100.0, 1.0, 0.4, 0.7), (20.0, 1.0, 1.5, 2.9), (5.0, 1.0, 5.4, 11.0)],
    },
    Row {
        name: "0.3 → 2.3 % fail",
        world: |rate| fails(rate, 0.003, 0.023),
        found: [(100.0, 1.0, 16.0, 27.8), (20.0, 0.928, 159.9, 305.0), (5.0, 0.177, 238.8, 500.7)],
    },
    Row {
        name: "3 → 8 % fail",
        world: |rate| fails(rate, 0.03, 0.08),
        found: [(100.0, 1.0, 14.1, 23.6), (20.0, 0.98, 102.1, 241.3), (5.0, 0.381, 230.5, 488.8)],
    },
    Row {
        name: "good for 60 s, then 0.3 → 5.3 %",
        world: |rate| World { turns_bad_after: 60.0, ..fails(rate, 0.003, 0.053) },
        found: [(100.0, 1.0, 71.7, 76.0), (20.0, 1.0, 107.0, 140.0), (5.0, f64::NAN, f64::NAN, f64::NAN)],
    },
    Row {
        name: "3.7 → 10.1 % slow (latency +50 %, wide)",
        world: |rate| slow(rate, 0.0372, 0.1008),
        found: [(100.0, 1.0, 17.7, 27.7), (20.0, 0.995, 108.2, 203.4), (5.0, 0.55, 220.5, 480.1)],
    },
    Row {
        name: "5.0 → 36.7 % slow (latency +50 %, narrow)",
        world: |rate| slow(rate, 0.0497, 0.367),
        found: [(100.0, 1.0, 5.8, 7.0), (20.0, 1.0, 15.4, 20.4), (5.0, 1.0, 53.4, 70.0)],
    },
    Row {
        name: "2.7 → 99.6 % slow (p95 20 → 800 ms)",
        world: |rate| slow(rate, 0.027, 0.996),
        found: [(100.0, 1.0, 4.6, 5.0), (20.0, 1.0, 8.9, 11.8), (5.0, 1.0, 28.1, 38.3)],
    },
    Row {
        name: "4 → 14 % slow (10 % take 400 ms more)",
        world: |rate| slow(rate, 0.04, 0.14),
        found: [(100.0, 1.0, 10.2, 15.5), (20.0, 1.0, 40.2, 64.3), (5.0, 0.991, 160.8, 238.5)],
    },
];

fn detection(out: &mut impl Write, cells: &mut Cells, trials: u32, long: bool) -> Result<()> {
    writeln!(
        out,
        "Bad versions: found, seconds until half / nine in ten are stopped, bad requests; {trials} in each cell\n"
    )?;
    writeln!(out, "| new version | 100/s | 20/s | 5/s |\n|---|---|---|---|")?;
    let mut wrong = Vec::new();
    for Row { name, world, found } in &ROWS {
        let mut row = Vec::new();
        for (rate, share, half, most) in found {
            let outcomes = cells.run(world(*rate), trials);
            row.push(cell(&outcomes));
            let found = outcomes.stopped() as f64 / f64::from(outcomes.trials);
            let agree = agrees(found, *share, 0.0)
                && agrees(outcomes.at(0.5), *half, 0.1)
                && agrees(outcomes.at(0.9), *most, 0.1);
            if !agree {
                wrong.push(format!("{name} at {rate}/s: {}, not {share} {half} / {most}", cell(&outcomes)));
            }
        }
        writeln!(out, "| {name} | {} |", joined(&row))?;
    }
    // A few trials say nothing about percentiles.
    ensure!(!long || wrong.is_empty(), "not as documented:\n{}", wrong.join("\n"));
    let quick = cells.run(fails(100.0, 0.003, 0.053), 100);
    ensure!(quick.stopped() == 100 && quick.at(0.9) < 12.0, "5 % at 100/s: {}", cell(&quick));
    Ok(())
}

/// Whether a figure is as documented. `NaN`: none is. `step`: how finely it is measured.
fn agrees(found: f64, documented: f64, step: f64) -> bool {
    documented.is_nan() || (found - documented).abs() <= documented * TOLERANCE + step
}

fn cell(outcomes: &Outcomes) -> String {
    let found = 100.0 * outcomes.stopped() as f64 / f64::from(outcomes.trials.max(1));
    format!("{found:.1} %, {:.1} / {:.1}, {}", outcomes.at(0.5), outcomes.at(0.9), outcomes.bad())
}

fn is_at_most(what: &str, stopped: usize, all: u32, one_of: u32) -> Result<()> {
    let allowed = all / one_of;
    // With few trials, one may be bad luck.
    ensure!(
        stopped <= allowed.max(1) as usize,
        "{stopped} of {all} {what} were stopped, more than {allowed}"
    );
    Ok(())
}

fn percent(share: f64) -> f64 {
    (share * 1e6).round() / 1e4
}

fn joined<T: ToString>(cells: &[T]) -> String {
    cells.iter().map(T::to_string).collect::<Vec<_>>().join(" | ")
}
