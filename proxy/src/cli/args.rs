//! The command line. Fixed; see docs/cli.md.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use uh_protocol::{BackendName, ServiceName};

use uh_settings::units::parse_duration;

/// Exit codes, as shown by `--help`.
const EXIT_CODES: &str = "Exit codes: 0 done · 1 failed · 2 usage · 3 refused (unhealthy, conflict) · 4 no proxy behind the socket · 5 done but not on disk";

/// A front door that moves traffic between the backends of a service in one atomic act.
#[derive(Debug, Parser)]
#[command(name = "uh-proxy", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the front door
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check a configuration: keys, values, names, and whether the addresses can be bound
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Make another backend active, at once and for every new request
    Switch(SwitchArgs),
    /// Show services, backends, health and what is in flight
    Status(StatusArgs),
    /// Wait for a standby's in-flight requests to finish
    Drain(DrainArgs),
    /// Register a backend, drop its registration, or withdraw it before you stop it
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Answer new requests with a maintenance page, or forward them again
    Maintenance(MaintenanceArgs),
    /// Read the configuration file again
    Reload(ReloadArgs),
}

impl Command {
    /// Whether the reply is to be JSON, even if it is that the command was refused.
    pub(super) fn wants_json(&self) -> bool {
        let client = match self {
            Self::Run { .. } | Self::Check { .. } => return false,
            Self::Switch(args) => &args.client,
            Self::Status(args) => &args.client,
            Self::Drain(args) => &args.client,
            Self::Backend(BackendCommand::Set(args)) => &args.client,
            Self::Backend(BackendCommand::Unset(args)) => &args.client,
            Self::Backend(BackendCommand::Withdraw(args)) => &args.client,
            Self::Maintenance(args) => &args.client,
            Self::Reload(args) => &args.client,
        };
        client.json
    }
}

/// How to find the front door, and how to print.
#[derive(Debug, ClapArgs)]
pub(super) struct ClientArgs {
    /// The admin socket
    #[arg(long, value_name = "PATH", env = "UH_PROXY_ADMIN_SOCKET", default_value = uh_protocol::DEFAULT_ADMIN_SOCKET)]
    pub(super) admin_socket: PathBuf,
    /// Print the reply as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Which service a command is for.
#[derive(Debug, ClapArgs)]
pub(super) struct ServiceArgs {
    /// The service; not needed when there is only one
    #[arg(long, value_name = "NAME")]
    pub(super) service: Option<ServiceName>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct SwitchArgs {
    /// The backend to make active
    pub(super) backend: BackendName,
    /// Refuse unless this backend is active now
    #[arg(long, value_name = "BACKEND")]
    pub(super) expect_active: Option<BackendName>,
    /// Refuse unless this is the generation now
    #[arg(long, value_name = "N")]
    pub(super) expect_generation: Option<u64>,
    /// Switch even to a backend that is not known to be healthy
    #[arg(long)]
    pub(super) force: bool,
    /// Then wait this long for the old backend's in-flight requests to finish
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) wait_drain: Option<Duration>,
    #[command(flatten)]
    pub(super) service: ServiceArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct StatusArgs {
    /// Only this service
    #[command(flatten)]
    pub(super) service: ServiceArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct DrainArgs {
    /// The standby to drain
    pub(super) backend: BackendName,
    /// How long to wait at most; left out: the service's drain_timeout
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) timeout: Option<Duration>,
    /// Cut what is left when the time is up
    #[arg(long)]
    pub(super) cut: bool,
    #[command(flatten)]
    pub(super) service: ServiceArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum BackendCommand {
    /// Register a backend's endpoints and version
    Set(BackendSetArgs),
    /// Drop a backend's registration: back to the configuration file's endpoints
    Unset(BackendUnsetArgs),
    /// Withdraw a standby before you stop it: nothing can switch to it until it is registered again
    Withdraw(BackendWithdrawArgs),
}

#[derive(Debug, ClapArgs)]
pub(super) struct BackendUnsetArgs {
    /// The backend
    pub(super) backend: BackendName,
    /// Refuse unless this is the generation now
    #[arg(long, value_name = "N")]
    pub(super) expect_generation: Option<u64>,
    /// Give even the active backend other endpoints
    #[arg(long)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) service: ServiceArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct BackendWithdrawArgs {
    /// The standby to withdraw
    pub(super) backend: BackendName,
    /// Refuse unless this is the generation now
    #[arg(long, value_name = "N")]
    pub(super) expect_generation: Option<u64>,
    #[command(flatten)]
    pub(super) service: ServiceArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct BackendSetArgs {
    /// The backend
    pub(super) backend: BackendName,
    /// An address: host:port or unix:/path; may be given more than once
    #[arg(long = "endpoint", value_name = "ADDRESS", required = true)]
    pub(super) endpoints: Vec<String>,
    /// The app's version
    #[arg(long)]
    pub(super) version: Option<String>,
    /// Give even the active backend other endpoints
    #[arg(long)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) service: ServiceArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OnOff {
    /// Answer new requests with the page
    On,
    /// Forward them again
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
    #[command(flatten)]
    pub(super) service: ServiceArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    pub(super) client: ClientArgs,
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
