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
            tell(&maintained)?;
        }
        Ok(if maintained.persisted { Exit::Done } else { Exit::NotOnDisk })
    })
}

fn tell(maintained: &Maintained) -> Result<(), Failed> {
    let Maintained { service, changed, details, .. } = maintained;
    match (details, changed) {
        (Some(details), _) => say(format_args!(
            "{service}: in maintenance since {}; clients are asked to come back after {} s: {}",
            details.since, details.retry_after_s, details.message
        ))?,
        (None, true) => say(format_args!("{service}: maintenance is over"))?,
        (None, false) => say(format_args!("{service}: is not in maintenance"))?,
    }
    if let Some(error) = &maintained.persist_error {
        say(format_args!(
            "warning: that is so now, but not on disk ({error}): a restart now would forget it; uh-proxy keeps trying"
        ))?;
    }
    Ok(())
}
