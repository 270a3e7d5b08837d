//! The arguments of the upkeep commands.

use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};
use uh_settings::units::parse_duration;

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-deploy prune
  uh-deploy prune --keep 3")]
pub(in crate::cli) struct PruneArgs {
    /// How many of the newest deployed images to keep [default: image_keep]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(in crate::cli) keep: Option<u32>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-deploy retire
  uh-deploy retire --now

Never stops the active backend. Stops nothing and exits with 6 if the active backend doesn't answer.
To run it regularly: config/uh-deploy-retire.timer")]
pub(in crate::cli) struct RetireArgs {
    /// Stop standbys even within their warm window
    #[arg(long)]
    pub(in crate::cli) now: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum OnOff {
    /// Show the maintenance page
    On,
    /// Forward requests again
    Off,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-deploy maintenance on --message \"Back at noon.\" --retry-after 1800
  uh-deploy maintenance off")]
pub(in crate::cli) struct MaintenanceArgs {
    /// Turn the page on or off
    pub(in crate::cli) state: OnOff,
    /// Text shown on the page
    #[arg(long)]
    pub(in crate::cli) message: Option<String>,
    /// Value of the Retry-After header
    #[arg(long, value_name = "SECONDS")]
    pub(in crate::cli) retry_after: Option<u32>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-deploy upgrade-proxy --to 0.2.0
  uh-deploy upgrade-proxy --again    restart it, for settings that a reload doesn't change

Set UH_VERSION in the compose files' .env first. If the new container doesn't lead, or is worse,
the old one leads on, and this exits with 1. After an interruption, run it again.")]
pub(in crate::cli) struct UpgradeProxyArgs {
    /// Version to upgrade to; refuse if the compose files name another one [default: the one that they name]
    #[arg(long = "to", value_name = "VERSION")]
    pub(in crate::cli) to_version: Option<String>,
    /// Container of the front door [default: the only one with uh-proxy's image]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) container: Option<String>,
    /// Replace it even if it runs that image already
    #[arg(long)]
    pub(in crate::cli) again: bool,
    /// How long the new container may take until it leads
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "90s")]
    pub(in crate::cli) timeout: Duration,
}
