//! `uh-proxy switch`

use std::time::Duration;

use serde_json::json;
use uh_protocol::client::{Client, ClientError};
use uh_protocol::request::{DrainRequest, Drained, SwitchRequest, Switched};
use uh_protocol::{Code, ServiceName};

use super::args::{ServiceArgs, SwitchArgs};
use super::exit::{Exit, Failed};
use super::{Done, complain, drain, release, say, say_json, target};

pub(super) fn switch(args: &SwitchArgs) -> Done {
    if args.services.len() > 1 {
        return release::release(args);
    }
    target::call(async {
        let client = target::client(&args.client);
        let service = ServiceArgs { service: args.services.first().cloned() };
        let service = target::service(&client, &service).await?;
        let request = SwitchRequest {
            to: args.backend.clone(),
            expect_active: args.expect_active.clone(),
            expect_generation: args.expect_generation,
            force: args.force,
        };
        let switched = client.switch(&service, &request).await?;
        // The switch is done now: a failure of the wait is reported after it, never instead of it.
        if !args.client.json {
            report(&switched)?;
        }
        let persisted = if switched.persisted { Exit::Done } else { Exit::NotOnDisk };
        let Some(timeout) = args.wait_drain.filter(|_| switched.changed) else {
            if args.client.json {
                say_json(&switched)?;
            }
            return Ok(persisted);
        };
        match wait(&client, &service, &switched, timeout).await {
            Ok(drained) => {
                if args.client.json {
                    say_json(&json!({"switch": switched, "drain": drained}))?;
                } else {
                    drain::report(&switched.from, &drained)?;
                }
                Ok(if drained.drained || !switched.persisted { persisted } else { Exit::Failed })
            }
            Err(error) => {
                let failed = afterwards(&client, &service, &switched, error).await;
                if args.client.json {
                    let mut reply = failed.json();
                    reply["switch"] = json!(switched);
                    say_json(&reply)?;
                }
                complain(failed.message());
                Ok(failed.exit())
            }
        }
    })
}

/// Waits until the old backend of a switch that was done has drained.
pub(super) async fn wait(
    client: &Client,
    service: &ServiceName,
    switched: &Switched,
    timeout: Duration,
) -> Result<Drained, ClientError> {
    let timeout_ms = Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    client.drain(service, &switched.from, &DrainRequest { timeout_ms, cut: None }).await
}

/// The error for a switch whose wait failed. The switch was done, so this is a failure, not a refusal.
pub(super) async fn afterwards(
    client: &Client,
    service: &ServiceName,
    switched: &Switched,
    error: ClientError,
) -> Failed {
    let Switched { from, to, .. } = switched;
    let undone = matches!(&error, ClientError::Problem(problem) if problem.code == Code::BackendActive);
    let now = client.status().await.ok().and_then(|status| {
        let active = status.services.iter().find(|of| of.name == *service)?.active.clone();
        Some(format!("; {active} is active now (generation {})", status.generation))
    });
    let now = now.unwrap_or_else(|| "; run uh-proxy status to see which backend is active now".to_owned());
    let what = if undone {
        format!("switched from {from} to {to}, but {from} was made active again before it had drained{now}")
    } else {
        format!("switched from {from} to {to}, but waiting for {from} to drain failed{now}")
    };
    Failed::from(anyhow::Error::from(error).context(what))
}

/// Prints what a switch did.
pub(super) fn report(switched: &Switched) -> Result<(), Failed> {
    let Switched { service, from, to, generation, in_flight_previous, .. } = switched;
    if switched.changed {
        say(format_args!(
            "{service}: {from} → {to} (generation {generation}), {in_flight_previous} in flight on {from}"
        ))?;
    } else {
        say(format_args!("{service}: {to} is already active (generation {generation})"))?;
    }
    switched.warnings.iter().try_for_each(|warning| say(format_args!("warning: {warning}")))?;
    if let Some(error) = &switched.persist_error {
        say(format_args!(
            "warning: {to} is active, but not saved to disk ({error}): a restart now may activate an older backend; uh-proxy keeps retrying"
        ))?;
    }
    Ok(())
}
