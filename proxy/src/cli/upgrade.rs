//! `uh-proxy upgrade`

use anyhow::Context as _;
use uh_protocol::request::UpgradeRequest;

use super::args::UpgradeArgs;
use super::exit::Exit;
use super::{Done, say, say_json, target};

pub(super) fn upgrade(args: &UpgradeArgs) -> Done {
    // Relative to the directory of the caller, not of uh-proxy.
    let binary = args.binary.as_ref().map(std::path::absolute).transpose().context("cannot use --binary")?;
    let timeout_ms = args.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    target::call(async {
        let client = target::client(&args.client);
        let upgraded = if args.back {
            client.upgrade_back().await?
        } else {
            client.upgrade(&UpgradeRequest { binary, timeout_ms }).await?
        };
        if args.client.json {
            say_json(&upgraded)?;
        } else {
            let (pid, version, took_ms) = (upgraded.pid, &upgraded.version, upgraded.took_ms);
            say(format_args!("uh-proxy {version} (process {pid}) leads after {took_ms} ms"))?;
        }
        Ok(Exit::Done)
    })
}
