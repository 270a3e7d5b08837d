//! The command line. It is a contract: see docs/cli.md.

mod upkeep;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, CommandFactory as _, Parser, Subcommand};
use clap_complete::ArgValueCandidates;
use jiff::Timestamp;
use uh_protocol::BackendName;

use uh_settings::help;
use uh_settings::shell::Shell;
use uh_settings::units::parse_duration;

use super::shell;
pub(super) use upkeep::{MaintenanceArgs, OnOff, PruneArgs, RetireArgs, UpgradeProxyArgs};

/// Shown below the top-level `--help`.
const AFTER_HELP: &str = "\
Examples:
  uh-deploy validate                                         check the machine and the configuration
  uh-deploy blue-green --version 1.0.1                       deploy
  uh-deploy blue-green --version 1.0.1 --watch 5m --auto-rollback
                                                             deploy, watch, roll back if it misbehaves
  uh-deploy rollback                                         undo the last deploy

Exit codes:
  0      done
  1      failed or refused; nothing changed for users
  2      invalid arguments or configuration
  3      rolled back automatically: the new version misbehaved
  4      another uh-deploy is running
  5      superseded by a newer change of the routing
  6      manual intervention required
  7      a watch found a breach
  8      not enough data to decide (with --require-verdict)
  128+n  ended by signal n";

/// Deploy new versions of an app behind uh-proxy without downtime, watch them, and roll them back.
///
/// uh-deploy can be killed at any moment: `uh-deploy recover` finishes or undoes what it was doing.
#[derive(Debug, Parser)]
#[command(name = "uh-deploy", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub(super) struct Args {
    /// Configuration file
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        value_name = "FILE",
        env = "UH_DEPLOY_CONFIG",
        default_value = DEFAULT_CONFIG
    )]
    pub(super) config: PathBuf,
    /// Print JSON: one object per line for commands that change or watch something, otherwise one document
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub(super) json: bool,
    /// Who runs the command, for the history and hooks [default: the sudo caller, the CI job's user, or the local user]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "NAME", env = "UH_DEPLOY_BY")]
    pub(super) by: Option<String>,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// The configuration file if none is given.
pub(super) const DEFAULT_CONFIG: &str = "/etc/uh-deploy/uh-deploy.toml";

/// The heading of the options that every command takes.
const GLOBAL: &str = "Global options";

/// The headings of the top-level `--help`, each with its commands. Every command is in one of them.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Deploy commands", &["validate", "blue-green", "promote", "hold", "abort", "monitor", "rollback"]),
    ("Inspection commands", &["status", "health-check", "logs", "history"]),
    ("Upkeep commands", &["recover", "start", "retire", "prune", "maintenance", "upgrade-proxy"]),
    ("Shell commands", &["completions", "man"]),
];

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check everything a deploy needs, without changing anything
    #[command(after_help = "\
Examples:
  uh-deploy validate
  uh-deploy validate --json | jq '.checks[] | select(.passed | not)'

Exits with 1 if a check fails.")]
    Validate,
    /// Deploy a version to the inactive backend: start it, verify it, switch to it, drain the old one
    BlueGreen(BlueGreenArgs),
    /// Give everybody the version on trial now, without waiting for the rest of its trial
    #[command(after_help = "\
Examples:
  uh-deploy promote

Tells the deploy that runs the trial; if that is gone, does it itself.")]
    Promote,
    /// Stop the trial at its present share of the clients, until `promote` or `abort`
    #[command(after_help = "\
Examples:
  uh-deploy hold

The deploy ends with 8. uh-proxy ends the split after services.NAME.split.hold_timeout.")]
    Hold,
    /// Give everybody the old version again, and remove the version on trial
    #[command(after_help = "\
Examples:
  uh-deploy abort

Tells the deploy that runs the trial; if that is gone, does it itself.")]
    Abort,
    /// Watch the active backend's errors, latency and health; exit with 7 if they are too high
    Monitor(MonitorArgs),
    /// Undo the last deploy: switch back to the version that served before it
    Rollback(RollbackArgs),
    /// Show on one screen who serves, how it is, what runs, what a rollback would take, and what happened last
    Status(StatusArgs),
    /// Show the active backend with its version, health, requests in flight and uptime
    #[command(after_help = "\
Examples:
  uh-deploy health-check
  uh-deploy health-check --json | jq -r .active

Exits with 1 if the active backend doesn't answer or the service is in maintenance.")]
    HealthCheck,
    /// Show a backend's log
    Logs(LogsArgs),
    /// Show past deploys, rollbacks and other changes
    History(HistoryArgs),
    /// Finish or undo an interrupted deploy or rollback, and continue its watch
    #[command(after_help = "\
Examples:
  uh-deploy recover

Exits with 6 if manual intervention is required, or if the active backend is down.")]
    Recover,
    /// Start the active backend from its record if it isn't running, for example after a reboot
    #[command(after_help = "\
Examples:
  uh-deploy start

Neither switches nor stops anything. To run it at boot: config/systemd/uh-deploy-start.service")]
    Start,
    /// Stop standbys whose warm window is over
    Retire(RetireArgs),
    /// Remove images of old deploys, never one that is in use or that a rollback would start
    Prune(PruneArgs),
    /// Turn uh-proxy's maintenance page on or off
    Maintenance(MaintenanceArgs),
    /// Replace uh-proxy's container by one of a new image, without a refused client
    UpgradeProxy(UpgradeProxyArgs),
    /// Print a script by which a shell completes commands, options and backends
    #[command(after_help = "\
Examples:
  source <(uh-deploy completions bash)
  uh-deploy completions zsh > /usr/local/share/zsh/site-functions/_uh-deploy
  uh-deploy completions fish > ~/.config/fish/completions/uh-deploy.fish")]
    Completions {
        /// Shell that runs the script
        shell: Shell,
    },
    /// Write the man pages of uh-deploy and its commands
    #[command(after_help = "\
Examples:
  uh-deploy man /usr/local/share/man/man1")]
    Man {
        /// Directory for the pages
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
    },
    /// Start an instance's app and supervise it; for uh-deploy itself
    #[command(hide = true, alias = "keep")]
    Supervise {
        /// The instance's directory
        directory: PathBuf,
    },
}

impl Command {
    /// Whether standard output is only for what the command shows: one document, or an app's log.
    pub(super) fn only_shows(&self) -> bool {
        matches!(
            self,
            Self::Validate | Self::Status(_) | Self::HealthCheck | Self::Logs(_) | Self::History(_)
        )
    }
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-deploy blue-green --version 1.0.1
  uh-deploy blue-green --version 1.0.1 --dry-run
  uh-deploy blue-green --version 1.0.1 --watch 5m --auto-rollback --require-verdict
  uh-deploy blue-green --version 1.0.1 --keep-failed")]
pub(super) struct BlueGreenArgs {
    /// Version to deploy
    #[arg(long = "version", value_name = "VERSION", env = "npm_package_version")]
    pub(super) deploy_version: Option<String>,
    /// Deploy only if nothing was ever deployed; otherwise do nothing. Waits for uh-proxy, which may still be starting
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) first: bool,
    /// Show what would be built, stopped, started and switched, without changing anything
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Switch without checking that the version works
    #[arg(long, help_heading = "Health checks")]
    pub(super) skip_health: bool,
    /// If the candidate fails, leave it running, out of service, so that you can inspect it
    #[arg(long, help_heading = "Health checks")]
    pub(super) keep_failed: bool,
    /// Give everybody the new version at once, without the trial of [canary]
    #[arg(long)]
    pub(super) no_canary: bool,
    /// Monitor the new version for this long after the switch; if this process is killed, `recover` or `retire` continues
    #[arg(long, help_heading = "After the switch", value_name = "DURATION", value_parser = parse_duration)]
    pub(super) watch: Option<Duration>,
    /// With --watch: roll back automatically if the new version misbehaves (exit 3). A cross-check with the old version
    /// prevents that in an outage of both, but not for a release of several services
    #[arg(long, help_heading = "After the switch", requires = "watch")]
    pub(super) auto_rollback: bool,
    /// With --watch: exit with 8 if there isn't enough data to decide
    #[arg(long, help_heading = "After the switch", requires = "watch")]
    pub(super) require_verdict: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-deploy monitor
  uh-deploy monitor --duration 10m --interval 30s
  uh-deploy monitor --auto-rollback

Thresholds are in [monitor] of the configuration.")]
pub(super) struct MonitorArgs {
    /// How long to watch [default: monitor.duration]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) duration: Option<Duration>,
    /// Time between two measurements [default: monitor.interval]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) interval: Option<Duration>,
    /// Roll back automatically if the version misbehaves (exit 3). A cross-check with the old version prevents that in an
    /// outage of both, but not for a release of several services
    #[arg(long)]
    pub(super) auto_rollback: bool,
    /// Exit with 8 if there isn't enough data to decide
    #[arg(long)]
    pub(super) require_verdict: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-deploy rollback                       undo the last deploy
  uh-deploy rollback --of 1.0.1            undo the deploy of 1.0.1 and nothing else (for CI)
  uh-deploy rollback --to blue             switch to blue
  uh-deploy rollback --to green --again    return to a version that was rolled back")]
pub(super) struct RollbackArgs {
    /// Undo the deploy of this version, which must be serving [default: undo the last change]
    #[arg(long, value_name = "VERSION", conflicts_with = "to")]
    pub(super) of: Option<String>,
    /// Backend to switch to [default: the one that served before the change to undo]
    #[arg(long, value_name = "BACKEND", add = ArgValueCandidates::new(shell::backends))]
    pub(super) to: Option<BackendName>,
    /// With --to: return even to a version that was rolled back before
    #[arg(long, requires = "to")]
    pub(super) again: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-deploy status
  uh-deploy status --watch
  uh-deploy status --json | jq '.services[0].well'

Takes no lock and changes nothing. Exits with 1 if the active backend doesn't answer or the service is in maintenance.")]
pub(super) struct StatusArgs {
    /// Look again every second, until you press Ctrl-C; with --json, one object per line
    #[arg(long, short)]
    pub(super) watch: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-deploy logs --tail 100
  uh-deploy logs --follow
  uh-deploy logs --backend green --since 10m")]
pub(super) struct LogsArgs {
    /// Backend whose log to show [default: the active one]
    #[arg(long, value_name = "BACKEND", add = ArgValueCandidates::new(shell::backends))]
    pub(super) backend: Option<BackendName>,
    /// Keep printing new lines; continues with the instance that takes over
    #[arg(long, short)]
    pub(super) follow: bool,
    /// Show only the last lines
    #[arg(long, value_name = "LINES")]
    pub(super) tail: Option<usize>,
    /// Show only newer lines: a duration ("10m") or an ISO 8601 time
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    pub(super) since: Option<Timestamp>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-deploy history --limit 10
  uh-deploy history --json --limit 1 | jq -r '.[0].outcome'")]
pub(super) struct HistoryArgs {
    /// Show only the newest entries
    #[arg(long, value_name = "LINES")]
    pub(super) limit: Option<usize>,
}

/// The command line, with its commands in one list.
pub(super) fn ungrouped() -> clap::Command {
    Args::command()
}

/// The command line, with its commands in groups.
pub(super) fn command() -> clap::Command {
    help::grouped(ungrouped(), &GROUPS).override_usage("uh-deploy [OPTIONS] <COMMAND>")
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
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_visible_command_is_in_one_group_of_the_help() {
        let shown = GROUPS.iter().flat_map(|(_, names)| names.iter().copied());
        let command = Args::command();
        let visible = command.get_subcommands().filter(|command| !command.is_hide_set());
        assert!(shown.eq(visible.map(clap::Command::get_name)));
    }
}
