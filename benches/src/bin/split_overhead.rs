//! The cost of a split: CPU time per request of uh-proxy, with and without one, in turns of one process.
//!
//! Half of the client addresses are on each side during a split, and every request is counted for the trial.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use uh_benches::compare::accounts::{cpu_time, pin_this_thread};
use uh_benches::compare::answer::Expected;
use uh_benches::compare::backend::Backends;
use uh_benches::compare::clients::{Clients, Job};
use uh_benches::compare::rows::{LOAD_CORE, PROXY_CORE, pin_the_load};
use uh_protocol::request::SplitRequest;
use uh_testkit::uh_proxy::{SERVICE, Setup, UhProxy};

/// Connections, all of which have a request in flight.
const CONNECTIONS: usize = 64;

/// The client addresses that a load balancer reports, in turn.
const ADDRESSES: u8 = 200;

/// Measure the cost of a split.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds, each with a turn without a split and one with it
    #[arg(long, default_value_t = 40)]
    rounds: usize,
    /// The length of a turn, in milliseconds
    #[arg(long, default_value_t = 500)]
    turn: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    // Its core is chosen before this thread is kept on it.
    let load_core = *LOAD_CORE;
    let dir = tempfile::tempdir()?;
    let backends = Backends::start(&["blue".to_owned(), "green".to_owned()], load_core)?;
    let [blue, green] = backends.addresses[..] else { unreachable!("two were started") };
    let setup = Setup::new(dir.path(), blue, green).server(
        "trusted_proxies = [\"127.0.0.1\"]\nthreads = 1\nlimits = { connections_per_address = 1000 }",
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    pin_this_thread(&[PROXY_CORE])?;
    let proxy = runtime.block_on(setup.start())?;
    pin_the_load()?;
    runtime.block_on(proxy.until_healthy())?;
    let request = |number| {
        let text = format!("GET /1024 HTTP/1.1\r\nHost: bench\r\nX-Forwarded-For: 192.0.2.{number}\r\n\r\n");
        Arc::from(text.into_bytes())
    };
    let job = Job {
        target: proxy.address,
        requests: (0..ADDRESSES).map(request).collect(),
        expected: Expected::Body(1024),
        upgrade: None,
        reuse: true,
        may_break: false,
    };
    let mut clients = Clients::open(job, CONNECTIONS)?;
    let turn = Duration::from_millis(args.turn);
    let mut costs: [Vec<f64>; 2] = Default::default();
    for round in 0..=args.rounds {
        for split in [false, true] {
            runtime.block_on(set(&proxy, if split { 50.0 } else { 0.0 }))?;
            // What changed is warm when it counts: connections to the other backend, and the trial's memory.
            clients.closed(CONNECTIONS, turn / 5)?;
            let before = cpu_time(proxy.process.id())?;
            let requests = clients.closed(CONNECTIONS, turn)?.latencies.len();
            let used = cpu_time(proxy.process.id())?.since(&before).total;
            ensure!(requests > 0, "no request in {turn:?}");
            if round > 0 {
                costs[usize::from(split)].push(used.as_secs_f64() * 1e6 / requests as f64);
            }
        }
    }
    report(&costs);
    Ok(())
}

/// Ends the split, or sends this percentage of the clients to green.
async fn set(proxy: &UhProxy, weight: f64) -> Result<()> {
    let request = SplitRequest { to: Some("green".parse()?), weight, ..SplitRequest::default() };
    proxy.client.split(&SERVICE.parse()?, &request).await?;
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the figures are the product")]
fn report([without, with]: &[Vec<f64>; 2]) {
    let ratios: Vec<f64> = without.iter().zip(with).map(|(without, with)| with / without).collect();
    let line = |what: &str, values: &[f64], unit: &str| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let at = |part: usize| values[values.len().saturating_sub(1) * part / 4];
        println!(
            "{what:14} {:.3}{unit}  (lowest {:.3}, quartiles {:.3} to {:.3})",
            at(2),
            at(0),
            at(1),
            at(3)
        );
    };
    println!("{} rounds; CPU time per request, medians", ratios.len());
    line("without", without, " us");
    line("with a split", with, " us");
    line("ratio", &ratios, "");
}
