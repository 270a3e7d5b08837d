//! `uh-sample-app`: reads the environment, listens, waits for a signal, drains, exits.
//!
//! Exit codes: 0 after a clean drain, 1 if it can't listen or had to cut requests, 2 for an invalid setting.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use uh_app_shim::drain::DrainOutcome;
use uh_sample_app::note;
use uh_sample_app::server::Server;
use uh_sample_app::settings::Settings;

// Two workers, so that a thread that hashes an upload doesn't delay a health check.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(error) => {
            note(error);
            return ExitCode::from(2);
        }
    };
    match run(settings).await {
        Ok(DrainOutcome::Clean) => ExitCode::SUCCESS,
        Ok(DrainOutcome::Cut(count)) => {
            note(format_args!("exiting, {count} requests in flight were cut"));
            ExitCode::FAILURE
        }
        Err(error) => {
            note(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> anyhow::Result<DrainOutcome> {
    let mut signals = Signals::install().context("can't install signal handlers")?;
    if !settings.start_delay.is_zero() {
        note(format_args!("listening in {:?}", settings.start_delay));
    }
    tokio::select! {
        () = tokio::time::sleep(settings.start_delay) => {}
        name = signals.next() => {
            note(format_args!("{name} before listening"));
            return Ok(DrainOutcome::Clean);
        }
    }

    let drain_timeout = settings.drain_timeout;
    let address = settings.address;
    let server = Server::bind(settings).await.with_context(|| format!("can't listen on {address}"))?;
    announce(server.local_addr()).context("can't write to stdout")?;

    let drain = server.serve_until(signals.next()).await;
    note(format_args!("draining {} active connections, at most {drain_timeout:?}", drain.in_flight()));
    Ok(tokio::select! {
        outcome = drain.finish() => outcome,
        name = signals.next() => {
            note(format_args!("{name} while draining"));
            DrainOutcome::Cut(drain.in_flight())
        }
    })
}

/// Prints the only line on stdout, which tells the parent the port.
fn announce(address: SocketAddr) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()
}

/// SIGTERM and SIGINT. Installed before anything else, because process 1 of a container has no default actions.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
