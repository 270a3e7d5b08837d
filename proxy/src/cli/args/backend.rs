//! The arguments of `uh-proxy backend`.

use clap::{Args as ClapArgs, Subcommand};
use clap_complete::ArgValueCandidates;
use uh_protocol::BackendName;

use super::{ClientArgs, ServiceArgs};
use crate::cli::candidates;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum BackendCommand {
    /// Register a backend's endpoints and version
    Set(BackendSetArgs),
    /// Drop a backend's registration and return to the endpoints in the configuration file
    Unset(BackendUnsetArgs),
    /// Withdraw a standby before you stop it, so that nothing can switch to it until it is registered again
    Withdraw(BackendWithdrawArgs),
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-proxy backend unset green")]
pub(in crate::cli) struct BackendUnsetArgs {
    /// Backend to return to the configuration file's endpoints
    #[arg(add = ArgValueCandidates::new(candidates::backends))]
    pub(in crate::cli) backend: BackendName,
    /// Refuse unless this is the current generation
    #[arg(long, value_name = "N")]
    pub(in crate::cli) expect_generation: Option<u64>,
    /// Change the endpoints even if the backend is active, although the new ones haven't been probed
    #[arg(long)]
    pub(in crate::cli) force: bool,
    #[command(flatten)]
    pub(in crate::cli) service: ServiceArgs,
    #[command(flatten)]
    pub(in crate::cli) client: ClientArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-proxy backend withdraw blue
  uh-proxy backend withdraw blue && docker stop app-blue")]
pub(in crate::cli) struct BackendWithdrawArgs {
    /// Standby to withdraw
    #[arg(add = ArgValueCandidates::new(candidates::backends))]
    pub(in crate::cli) backend: BackendName,
    /// Refuse unless this is the current generation
    #[arg(long, value_name = "N")]
    pub(in crate::cli) expect_generation: Option<u64>,
    #[command(flatten)]
    pub(in crate::cli) service: ServiceArgs,
    #[command(flatten)]
    pub(in crate::cli) client: ClientArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-proxy backend set green --endpoint 127.0.0.1:3009 --version 1.0.1
  uh-proxy backend set green --endpoint 10.0.0.1:3000 --endpoint 10.0.0.2:3000")]
pub(in crate::cli) struct BackendSetArgs {
    /// Backend to register
    #[arg(add = ArgValueCandidates::new(candidates::backends))]
    pub(in crate::cli) backend: BackendName,
    /// Address: host:port, [IPv6]:port or unix:/path; may be repeated
    #[arg(long = "endpoint", value_name = "ADDRESS", required = true)]
    pub(in crate::cli) endpoints: Vec<String>,
    /// Version of the app
    #[arg(long)]
    pub(in crate::cli) version: Option<String>,
    /// Change the endpoints even if the backend is active, although the new ones haven't been probed
    #[arg(long)]
    pub(in crate::cli) force: bool,
    #[command(flatten)]
    pub(in crate::cli) service: ServiceArgs,
    #[command(flatten)]
    pub(in crate::cli) client: ClientArgs,
}
