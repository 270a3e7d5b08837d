//! The command line. Fixed; see docs/cli.md.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use uh_protocol::BackendName;

use uh_settings::units::parse_duration;

/// Exit codes, as shown by `--help`.
const EXIT_CODES: &str = "Exit codes: 0 done · 1 failed, nothing changed · 2 usage · 3 rolled back · 4 locked · 5 superseded · 6 needs attention · 7 monitor breach · 8 not enough data (--require-verdict) · 128+n ended by signal n";

/// Deploys a version beside the one that serves, proves it, switches, and can be killed anywhere.
#[derive(Debug, Parser)]
#[command(name = "uh-deploy", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(super) struct Args {
    /// The configuration file
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "UH_DEPLOY_CONFIG",
        default_value = "/etc/uh-deploy/uh-deploy.toml"
    )]
    pub(super) config: PathBuf,
    /// Print JSON: one object a line while something happens, one document where something is shown
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Who is at work, for the history and hooks; left out: who called sudo, who started the CI job, or the user
    #[arg(long, global = true, value_name = "NAME", env = "UH_DEPLOY_BY")]
    pub(super) by: Option<String>,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check everything that a deploy needs, and change nothing
    Validate,
    /// Deploy a version to the backend that is not active, prove it, switch to it, drain the old one
    BlueGreen(BlueGreenArgs),
    /// Watch the active backend's errors and latency; exit 7 if they are too high
    Monitor(MonitorArgs),
    /// Undo the last deploy: switch back to what served before it
    Rollback(RollbackArgs),
    /// Show what is active: version, health, what is in flight, uptime
    HealthCheck,
    /// Show a backend's log
    Logs(LogsArgs),
    /// Show what was done
    History(HistoryArgs),
    /// Finish or undo a deploy or rollback that was interrupted
    Recover,
    /// Start the active backend from its record if it does not run: after a reboot
    Start,
    /// Stop standbys whose warm window is over
    Retire(RetireArgs),
    /// Remove images that were deployed long ago; never one in use or on record for a rollback
    Prune(PruneArgs),
    /// Turn the front door's maintenance page on or off
    Maintenance(MaintenanceArgs),
    /// Start an instance's app and stay with it: for uh-deploy itself
    #[command(hide = true, alias = "keep")]
    Supervise {
        /// The instance's directory
        directory: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub(super) struct BlueGreenArgs {
    /// The version to deploy
    #[arg(long = "version", value_name = "VERSION", env = "npm_package_version")]
    pub(super) deploy_version: Option<String>,
    /// Only if nothing was ever deployed: do nothing otherwise. Waits for the front door, which may still be starting
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) first: bool,
    /// Only say what would be done
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Switch without proof that the version works
    #[arg(long)]
    pub(super) skip_health: bool,
    /// Leave a candidate that fails running, out of service, so that you can ask it why
    #[arg(long)]
    pub(super) keep_failed: bool,
    /// Watch the new version for this long from the switch on; if this process ends, recover or the timer continues
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) watch: Option<Duration>,
    /// With --watch: roll back automatically if the new version is bad (exit 3)
    #[arg(long, requires = "watch")]
    pub(super) auto_rollback: bool,
    /// With --watch: exit 8 if there was not enough data to decide
    #[arg(long, requires = "watch")]
    pub(super) require_verdict: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct MonitorArgs {
    /// How long; left out: monitor.duration
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) duration: Option<Duration>,
    /// How often; left out: monitor.interval
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) interval: Option<Duration>,
    /// Roll back automatically if it is bad (exit 3)
    #[arg(long)]
    pub(super) auto_rollback: bool,
    /// Exit 8 if there was not enough data to decide
    #[arg(long)]
    pub(super) require_verdict: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct RollbackArgs {
    /// Undo the deploy of this version, if it serves; left out: undo the last change
    #[arg(long, value_name = "VERSION", conflicts_with = "to")]
    pub(super) of: Option<String>,
    /// The backend to switch to; left out: what served before the change that is undone
    #[arg(long, value_name = "BACKEND")]
    pub(super) to: Option<BackendName>,
    /// With --to: even a version that was rolled back
    #[arg(long, requires = "to")]
    pub(super) again: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct LogsArgs {
    /// The backend; left out: the active one
    #[arg(long, value_name = "BACKEND")]
    pub(super) backend: Option<BackendName>,
    /// Go on with what is written from now on
    #[arg(long, short)]
    pub(super) follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    pub(super) tail: Option<usize>,
    /// Only what is newer: a duration ("10m") or an ISO 8601 time
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    pub(super) since: Option<Timestamp>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct HistoryArgs {
    /// Only the newest
    #[arg(long, value_name = "LINES")]
    pub(super) limit: Option<usize>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct PruneArgs {
    /// How many of the newest deployed images stay; left out: image_keep
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) keep: Option<u32>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct RetireArgs {
    /// Stop standbys even within their warm window
    #[arg(long)]
    pub(super) now: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OnOff {
    /// Show the page
    On,
    /// Serve again
    Off,
}

#[derive(Debug, ClapArgs)]
pub(super) struct MaintenanceArgs {
    /// on or off
    pub(super) state: OnOff,
    /// Shown on the page
    #[arg(long)]
    pub(super) message: Option<String>,
    /// For the Retry-After header, in seconds
    #[arg(long, value_name = "SECONDS")]
    pub(super) retry_after: Option<u32>,
}

fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(length) = parse_duration(text) {
        return Timestamp::now().checked_sub(length).map_err(|e| e.to_string());
    }
    text.parse().map_err(|_| {
        format!("{text:?} is neither a duration (\"10m\") nor a time (\"2026-11-25T10:00:00Z\")")
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
