//! `uh-proxy maintenance`

use uh_protocol::request::{Maintained, MaintenanceRequest};

use super::args::{MaintenanceArgs, OnOff};
use super::exit::{Exit, Failed};
use super::{Done, say, say_json, target};

pub(super) fn maintenance(args: &MaintenanceArgs) -> Done {
    target::call(async {
        let client = target::client(&args.client);
        let service = target::service(&client, &args.service).await?;
        let request = MaintenanceRequest {
            on: args.state == OnOff::On,
            message: args.message.clone(),
            retry_after_s: args.retry_after,
        };
        let maintained = client.maintenance(&service, &request).await?;
        if args.client.json {
            say_json(&maintained)?;
        } else {
            report(&maintained)?;
        }
        Ok(if maintained.persisted { Exit::Done } else { Exit::NotOnDisk })
    })
}

fn report(maintained: &Maintained) -> Result<(), Failed> {
    let Maintained { service, changed, details, .. } = maintained;
    match (details, changed) {
        (Some(details), _) => say(format_args!(
            "{service}: in maintenance since {} (Retry-After: {} s): {}",
            details.since, details.retry_after_s, details.message
        ))?,
        (None, true) => say(format_args!("{service}: maintenance is off"))?,
        (None, false) => say(format_args!("{service}: not in maintenance"))?,
    }
    if let Some(error) = &maintained.persist_error {
        say(format_args!(
            "warning: applied, but not saved to disk ({error}): a restart now would undo it; uh-proxy keeps retrying"
        ))?;
    }
    Ok(())
}
