//! `uh-sample-app`: reads the environment, listens, waits for a signal, drains, leaves.
//!
//! Exit codes: 0 after a clean drain, 1 when it could not listen or had to cut what was in flight, 2 for a setting
//! that is wrong.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use uh_app_shim::drain::Outcome;
use uh_sample_app::note;
use uh_sample_app::server::Server;
use uh_sample_app::settings::Settings;

// Two workers, so that a thread busy hashing an upload never holds up a health answer.
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
        Ok(Outcome::Clean) => ExitCode::SUCCESS,
        Ok(Outcome::Cut(count)) => {
            note(format_args!("left with {count} in flight cut"));
            ExitCode::FAILURE
        }
        Err(error) => {
            note(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> anyhow::Result<Outcome> {
    let mut signals = Signals::install().context("signal handlers could not be installed")?;
    if !settings.start_delay.is_zero() {
        note(format_args!("listening in {:?}", settings.start_delay));
    }
    tokio::select! {
        () = tokio::time::sleep(settings.start_delay) => {}
        name = signals.next() => {
            note(format_args!("{name} before listening"));
            return Ok(Outcome::Clean);
        }
    }

    let drain_timeout = settings.drain_timeout;
    let address = settings.address;
    let server = Server::bind(settings).await.with_context(|| format!("could not listen on {address}"))?;
    announce(server.local_addr()).context("could not write to stdout")?;

    let drain = server.serve_until(signals.next()).await;
    note(format_args!("draining {} active connections, at most {drain_timeout:?}", drain.in_flight()));
    Ok(tokio::select! {
        outcome = drain.finish() => outcome,
        name = signals.next() => {
            note(format_args!("{name} while draining"));
            Outcome::Cut(drain.in_flight())
        }
    })
}

/// The one line on stdout: whoever started this learns the port from it.
fn announce(address: SocketAddr) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()
}

/// SIGTERM and SIGINT. Installed before anything else, since as process 1 of a container the defaults do nothing.
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
