//! The command line. It is a contract: see docs/cli.md.

mod backend;
mod traffic;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::ArgValueCandidates;
use uh_protocol::{BackendName, ServiceName};

use uh_settings::help;
use uh_settings::shell::Shell;
use uh_settings::units::parse_duration;

use super::candidates;
pub(super) use backend::{BackendCommand, BackendSetArgs, BackendUnsetArgs, BackendWithdrawArgs};
pub(super) use traffic::{PreviewArgs, SplitArgs, SplitTarget, SwitchArgs};

/// Shown below the top-level `--help`.
const AFTER_HELP: &str = "\
Examples:
  uh-proxy check --config uh-proxy.toml         list every mistake in a configuration
  uh-proxy run --config uh-proxy.toml           run the proxy
  uh-proxy status                               show backends, health and requests in flight
  uh-proxy switch green --wait-drain 30s        move traffic to green, wait until blue is idle

All commands except run, check, import, completions and man call a running uh-proxy over its admin socket.

Exit codes:
  0  done
  1  failed
  2  invalid arguments
  3  refused (unhealthy backend, conflict, no permission); nothing changed. import: something behaves differently
  4  no uh-proxy is listening on the admin socket
  5  done, but not saved to disk";

/// Run a blue-green proxy, and switch its traffic between backends in one atomic step.
#[derive(Debug, Parser)]
#[command(name = "uh-proxy", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

/// The headings of the top-level `--help`, each with its commands. Every command is in one of them.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Server commands", &["run", "check", "import", "reload", "upgrade", "certificates"]),
    ("Traffic commands", &["status", "switch", "split", "preview", "drain", "maintenance"]),
    ("Backend commands", &["backend"]),
    ("Shell commands", &["completions", "man"]),
];

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the proxy until SIGTERM or SIGINT
    #[command(after_help = "\
Examples:
  uh-proxy run --config /etc/uh-proxy/uh-proxy.toml

SIGTERM and SIGINT finish the requests in flight, then stop. SIGHUP reloads the configuration.
SIGUSR1 reopens the access log. SIGUSR2 does what uh-proxy upgrade does.")]
    Run {
        /// Configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Replace the uh-proxy that runs, if there is one: needs server.keeper
        #[arg(long)]
        take_over: bool,
    },
    /// List every mistake in a configuration, including names that don't resolve and addresses that are taken
    #[command(after_help = "\
Examples:
  uh-proxy check --config /etc/uh-proxy/uh-proxy.toml

Exits with 1 if there is a mistake. Addresses used by a running uh-proxy with the same admin socket are fine.")]
    Check {
        /// Configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Turn a configuration of nginx into one of uh-proxy
    #[command(subcommand)]
    Import(ImportCommand),
    /// Reload the configuration file without dropping a connection, and list what changed
    Reload(ReloadArgs),
    /// Replace the running uh-proxy by the installed program, without refusing a connection
    Upgrade(UpgradeArgs),
    /// List the certificates with their hosts, source, expiry, next renewal and last error
    Certificates(CertificatesArgs),
    /// Show services and backends with their health, requests in flight and tunnels
    Status(StatusArgs),
    /// Make another backend active for all new requests
    Switch(SwitchArgs),
    /// Send a share of the clients to another backend, or end that
    Split(SplitArgs),
    /// Make a link by which its holder looks at a standby
    Preview(PreviewArgs),
    /// Wait for a standby's in-flight requests to finish
    Drain(DrainArgs),
    /// Answer new requests with a maintenance page, or forward them again
    Maintenance(MaintenanceArgs),
    /// Register a backend's endpoints, drop its registration, or withdraw it
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Print a script by which a shell completes commands, options, services and backends
    #[command(after_help = "\
Examples:
  source <(uh-proxy completions bash)
  uh-proxy completions zsh > /usr/local/share/zsh/site-functions/_uh-proxy
  uh-proxy completions fish > ~/.config/fish/completions/uh-proxy.fish")]
    Completions {
        /// Shell that runs the script
        shell: Shell,
    },
    /// Write the man pages of uh-proxy and its commands
    #[command(after_help = "\
Examples:
  uh-proxy man /usr/local/share/man/man1")]
    Man {
        /// Directory for the pages
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
    },
}

impl Command {
    /// Whether to print the reply as JSON, including a refusal.
    pub(super) fn wants_json(&self) -> bool {
        let client = match self {
            Self::Run { .. }
            | Self::Check { .. }
            | Self::Import(_)
            | Self::Completions { .. }
            | Self::Man { .. } => return false,
            Self::Switch(args) => &args.client,
            Self::Split(args) => &args.client,
            Self::Preview(args) => &args.client,
            Self::Status(args) => &args.client,
            Self::Drain(args) => &args.client,
            Self::Backend(BackendCommand::Set(args)) => &args.client,
            Self::Backend(BackendCommand::Unset(args)) => &args.client,
            Self::Backend(BackendCommand::Withdraw(args)) => &args.client,
            Self::Maintenance(args) => &args.client,
            Self::Reload(args) => &args.client,
            Self::Upgrade(args) => &args.client,
            Self::Certificates(args) => &args.client,
        };
        client.json
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum ImportCommand {
    /// Print uh-proxy's configuration for an nginx.conf, and on standard error what wasn't carried over
    #[command(after_help = "\
Examples:
  uh-proxy import nginx /etc/nginx/nginx.conf > uh-proxy.toml
  uh-proxy check --config uh-proxy.toml

Included files are read too. Exits with 2 if a file can't be read or isn't valid, and with 3 if a directive that
changes behaviour wasn't carried over.")]
    Nginx {
        /// nginx's configuration, or a file with servers that it includes
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// How to reach uh-proxy, and how to print.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Client options")]
pub(super) struct ClientArgs {
    /// uh-proxy's admin socket
    #[arg(long, value_name = "PATH", env = "UH_PROXY_ADMIN_SOCKET", default_value = uh_protocol::DEFAULT_ADMIN_SOCKET)]
    pub(super) admin_socket: PathBuf,
    /// Print the reply as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Which service a command is for.
#[derive(Debug, ClapArgs)]
pub(super) struct ServiceArgs {
    /// Service; not needed if there is only one
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(candidates::services))]
    pub(super) service: Option<ServiceName>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-proxy status
  uh-proxy status --json | jq '.services[0].active'")]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) service: ServiceArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-proxy drain blue
  uh-proxy drain blue --timeout 10s --cut

Exits with 1 if requests are still in flight when the time is up.")]
pub(super) struct DrainArgs {
    /// Standby to drain
    #[arg(add = ArgValueCandidates::new(candidates::backends))]
    pub(super) backend: BackendName,
    /// Wait at most this long [default: the service's drain_timeout]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) timeout: Option<Duration>,
    /// Cut the remaining requests and tunnels when the time is up
    #[arg(long)]
    pub(super) cut: bool,
    #[command(flatten)]
    pub(super) service: ServiceArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OnOff {
    /// Answer new requests with the maintenance page
    On,
    /// Forward requests again
    Off,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-proxy maintenance on --message 'Back at 14:00 UTC' --retry-after 600
  uh-proxy maintenance off")]
pub(super) struct MaintenanceArgs {
    /// Turn maintenance on or off
    pub(super) state: OnOff,
    /// Text shown on the maintenance page
    #[arg(long)]
    pub(super) message: Option<String>,
    /// Value of the Retry-After header [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub(super) retry_after: Option<u32>,
    #[command(flatten)]
    pub(super) service: ServiceArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-proxy reload

A file with a mistake is rejected, and nothing changes. The access log is reopened in any case.")]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-proxy check --config /etc/uh-proxy/uh-proxy.toml && uh-proxy upgrade
  uh-proxy upgrade --binary /opt/uh-proxy-2/uh-proxy --timeout 2m
  uh-proxy upgrade --back

Starts the program, which takes over the listening sockets and the lead; the old process finishes its requests and
ends. Exits with 0 once the new process leads, and with 3 if the old one goes on.")]
pub(super) struct UpgradeArgs {
    /// Program to start [default: the path from which uh-proxy was started]
    #[arg(long, value_name = "PATH")]
    pub(super) binary: Option<PathBuf>,
    /// Have the previous process lead again, as long as it is there: for a minute, and until its requests are over
    #[arg(long, conflicts_with_all = ["binary", "timeout"])]
    pub(super) back: bool,
    /// How long the new process may take until it leads [default: 90s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) timeout: Option<Duration>,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-proxy certificates
  uh-proxy certificates --json | jq -r '.certificates[] | select(.problem) | .name'

Exits with 1 if a certificate has expired, is still to be issued, or can't be loaded, issued or renewed.")]
pub(super) struct CertificatesArgs {
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// The command line, with its commands in one list.
pub(super) fn ungrouped() -> clap::Command {
    Args::command()
}

/// The command line, with its commands in groups.
pub(super) fn command() -> clap::Command {
    help::grouped(ungrouped(), &GROUPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_command_is_in_one_group_of_the_help() {
        let shown = GROUPS.iter().flat_map(|(_, names)| names.iter().copied());
        assert!(shown.eq(Args::command().get_subcommands().map(clap::Command::get_name)));
    }
}
