//! `uh-proxy switch`

use uh_protocol::request::{DrainRequest, SwitchRequest, Switched};

use super::args::SwitchArgs;
use super::exit::{Exit, Failed};
use super::{Done, drain, say, say_json, target};

pub(super) fn switch(args: &SwitchArgs) -> Done {
    target::call(async {
        let client = target::client(&args.client);
        let service = target::service(&client, &args.service).await?;
        let request = SwitchRequest {
            to: args.backend.clone(),
            expect_active: args.expect_active.clone(),
            expect_generation: args.expect_generation,
            force: args.force,
        };
        let switched = client.switch(&service, &request).await?;
        let drained = match args.wait_drain.filter(|_| switched.changed) {
            Some(timeout) => {
                let timeout_ms = Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
                Some(client.drain(&service, &switched.from, &DrainRequest { timeout_ms, cut: None }).await?)
            }
            None => None,
        };
        if args.client.json {
            match &drained {
                Some(drained) => say_json(&serde_json::json!({"switch": switched, "drain": drained}))?,
                None => say_json(&switched)?,
            }
        } else {
            tell(&switched)?;
            if let Some(drained) = &drained {
                drain::tell(&switched.from, drained)?;
            }
        }
        Ok(match (switched.persisted, drained.is_none_or(|drained| drained.drained)) {
            (false, _) => Exit::NotOnDisk,
            (true, false) => Exit::Failed,
            (true, true) => Exit::Done,
        })
    })
}

fn tell(switched: &Switched) -> Result<(), Failed> {
    let Switched { service, from, to, generation, in_flight_previous, .. } = switched;
    if switched.changed {
        say(format_args!(
            "{service}: {from} → {to} (generation {generation}), {in_flight_previous} in flight on {from}"
        ))?;
    } else {
        say(format_args!("{service}: {to} is active already (generation {generation})"))?;
    }
    if let Some(error) = &switched.persist_error {
        say(format_args!(
            "warning: {to} serves, but that is not on disk ({error}): a restart now may serve an older backend; uh-proxy keeps trying"
        ))?;
    }
    Ok(())
}
