//! `uh-proxy split`

use std::fmt::Display;

use uh_protocol::request::{SplitReply, SplitRequest};
use uh_protocol::status::{SplitStatus, Suspect};

use super::args::{SplitArgs, SplitTarget};
use super::exit::{Exit, Failed};
use super::{Done, say, say_json, target};

pub(super) fn split(args: &SplitArgs) -> Done {
    let (to, weight) = match (&args.target, args.weight) {
        (SplitTarget::Backend(to), Some(weight)) => (Some(to.clone()), weight),
        (SplitTarget::Backend(to), None) => {
            return Err(Failed::usage(format!("give the share of {to}, such as: uh-proxy split {to} 10%")));
        }
        (SplitTarget::Off, None) => (None, 0.0),
        (SplitTarget::Off, Some(_)) => return Err(Failed::usage("off takes no share".to_owned())),
    };
    target::call(async {
        let client = target::client(&args.client);
        let service = target::service(&client, &args.service).await?;
        let ttl_ms = args.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        let expect_generation = args.expect_generation;
        let request = SplitRequest { to, weight, ttl_ms, expect_generation, ..SplitRequest::default() };
        let reply = client.split(&service, &request).await?;
        if args.client.json {
            say_json(&reply)?;
        } else {
            report(&reply)?;
        }
        Ok(if reply.persisted { Exit::Done } else { Exit::NotOnDisk })
    })
}

fn report(reply: &SplitReply) -> Result<(), Failed> {
    let SplitReply { service, active, generation, .. } = reply;
    match (&reply.split, &reply.ended) {
        (Some(split), _) => {
            say(format_args!("{service}: {} (generation {generation})", in_words(split, active)))?;
        }
        (None, Some(ended)) => say(format_args!(
            "{service}: all clients go to {active} (generation {generation}), {} in flight on {}",
            reply.remaining.total(),
            ended.to
        ))?,
        (None, None) => {
            say(format_args!("{service}: no split; all clients go to {active} (generation {generation})"))?;
        }
    }
    if let Some(error) = &reply.persist_error {
        say(format_args!(
            "warning: applied, but not saved to disk ({error}): a restart now would undo it; uh-proxy keeps retrying"
        ))?;
    }
    Ok(())
}

/// `10% to green, 90% to blue, until 2026-11-30T20:00:00.000Z`
pub(super) fn in_words(split: &SplitStatus, active: &impl Display) -> String {
    let SplitStatus { to, weight, until, leased, suspect, .. } = split;
    // A weight has four decimals at most.
    let rest = ((100.0 - weight) * 10_000.0).round() / 10_000.0;
    let ends = if *leased { "unless it is renewed, until" } else { "until" };
    let why = match suspect {
        Suspect::Split => String::new(),
        Suspect::Active => format!(" (a cross-check of {active})"),
    };
    format!("{weight}% to {to}, {rest}% to {active}, {ends} {until}{why}")
}
