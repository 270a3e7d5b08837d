//! The arguments of the commands that move traffic: `switch`, `split` and `preview`.

use std::time::Duration;

use clap::Args as ClapArgs;
use clap_complete::ArgValueCandidates;
use uh_protocol::request::{MAX_PREVIEW_TTL_MS, MIN_PREVIEW_TTL_MS};
use uh_protocol::{BackendName, ServiceName};
use uh_settings::units::parse_duration;

use super::{ClientArgs, ServiceArgs};
use crate::cli::candidates;

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-proxy switch green
  uh-proxy switch green --wait-drain 30s
  uh-proxy switch green --expect-active blue --json
  uh-proxy switch green --service web,api

Several services move in one step, or none does. Exits with 3 if the switch is refused, and with 5 if it is done but not saved to disk.")]
pub(in crate::cli) struct SwitchArgs {
    /// Backend to make active
    #[arg(add = ArgValueCandidates::new(candidates::backends))]
    pub(in crate::cli) backend: BackendName,
    /// Refuse unless this backend is active now
    #[arg(long, value_name = "BACKEND", help_heading = "Conditions", add = ArgValueCandidates::new(candidates::backends))]
    pub(in crate::cli) expect_active: Option<BackendName>,
    /// Refuse unless this is the current generation
    #[arg(long, value_name = "N", help_heading = "Conditions")]
    pub(in crate::cli) expect_generation: Option<u64>,
    /// Switch even if the backend isn't known to be healthy
    #[arg(long, help_heading = "Conditions")]
    pub(in crate::cli) force: bool,
    /// After the switch, wait this long for the old backend's in-flight requests to finish
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(in crate::cli) wait_drain: Option<Duration>,
    /// Service; not needed if there is only one. Several, separated by commas, move together or not at all
    #[arg(long = "service", value_name = "NAME", value_delimiter = ',', add = ArgValueCandidates::new(candidates::services))]
    pub(in crate::cli) services: Vec<ServiceName>,
    #[command(flatten)]
    pub(in crate::cli) client: ClientArgs,
}

/// Where a share of the clients goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum SplitTarget {
    /// To this backend.
    Backend(BackendName),
    /// Nowhere else.
    Off,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  uh-proxy split green 10%
  uh-proxy split green 50% --ttl 10m
  uh-proxy split off
  uh-proxy switch green

A client stays on its side, and a larger share only moves clients to the backend. A switch ends the split. Exits with 3
if the split is refused, and with 5 if it is done but not saved to disk.")]
pub(in crate::cli) struct SplitArgs {
    /// Backend that gets a share of the clients; off: all clients go to the active backend again
    #[arg(value_name = "BACKEND|off", value_parser = split_target, add = ArgValueCandidates::new(candidates::split_targets))]
    pub(in crate::cli) target: SplitTarget,
    /// Share of the clients, such as 10%
    #[arg(value_name = "WEIGHT", value_parser = percentage)]
    pub(in crate::cli) weight: Option<f64>,
    /// End the split after this long, unless the command is run again [default: the service's split.hold_timeout]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(in crate::cli) ttl: Option<Duration>,
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
  uh-proxy preview green --for 1h
  uh-proxy preview green --url https://shop.example.com/checkout
  curl -H \"X-UH-Preview: $(uh-proxy preview green --json | jq -r .token)\" https://shop.example.com/

All others get the active backend as before. To end all links to a backend, withdraw it. To end all links of a service,
increase its preview.generation and reload.")]
pub(in crate::cli) struct PreviewArgs {
    /// Standby to look at
    #[arg(add = ArgValueCandidates::new(candidates::backends))]
    pub(in crate::cli) backend: BackendName,
    /// How long the link is valid: 1s to 168h [default: 1h]
    #[arg(long = "for", value_name = "DURATION", value_parser = preview_ttl)]
    pub(in crate::cli) duration: Option<Duration>,
    /// Address to make the link for, such as https://shop.example.com/checkout [default: the service's first host]
    #[arg(long, value_name = "URL", value_parser = address)]
    pub(in crate::cli) url: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) service: ServiceArgs,
    #[command(flatten)]
    pub(in crate::cli) client: ClientArgs,
}

fn preview_ttl(text: &str) -> Result<Duration, String> {
    let ttl = parse_duration(text).map_err(|e| e.to_string())?;
    let range = Duration::from_millis(MIN_PREVIEW_TTL_MS)..=Duration::from_millis(MAX_PREVIEW_TTL_MS);
    if range.contains(&ttl) { Ok(ttl) } else { Err("use 1s to 168h".to_owned()) }
}

/// `https://shop.example.com/checkout`
fn address(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let good = rest.is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic() && b != b'#' && b != b'\\')
    });
    if !good {
        return Err("use an address such as https://shop.example.com/checkout, without a fragment".to_owned());
    }
    Ok(text.to_owned())
}

fn split_target(text: &str) -> Result<SplitTarget, String> {
    match text {
        "off" => Ok(SplitTarget::Off),
        name => name.parse().map(SplitTarget::Backend).map_err(|e| format!("{e}")),
    }
}

/// `10%`
fn percentage(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').map(str::trim_end);
    let plain = |number: &&str| number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let percent = number.filter(plain).and_then(|number| number.parse::<f64>().ok());
    let percent = percent.filter(|percent| *percent <= 100.0);
    percent.ok_or_else(|| "use a percentage from 0% to 100%, such as 10%".to_owned())
}
