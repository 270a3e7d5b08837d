//! `uh-proxy switch`

use std::time::Duration;

use serde_json::json;
use uh_protocol::client::{Client, ClientError};
use uh_protocol::request::{DrainRequest, Drained, SwitchRequest, Switched};
use uh_protocol::{Code, ServiceName};

use super::args::SwitchArgs;
use super::exit::{Exit, Failed};
use super::{Done, complain, drain, say, say_json, target};

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
        // From here on the switch is done, whatever becomes of the wait: a failure is told after it, never instead.
        if !args.client.json {
            tell(&switched)?;
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
                    drain::tell(&switched.from, &drained)?;
                }
                Ok(if drained.drained || !switched.persisted { persisted } else { Exit::Failed })
            }
            Err(error) => {
                let failed = afterwards(&client, &service, &switched, error).await;
                if args.client.json {
                    let mut told = failed.json();
                    told["switch"] = json!(switched);
                    say_json(&told)?;
                }
                complain(failed.message());
                Ok(failed.exit())
            }
        }
    })
}

async fn wait(
    client: &Client,
    service: &ServiceName,
    switched: &Switched,
    timeout: Duration,
) -> Result<Drained, ClientError> {
    let timeout_ms = Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    client.drain(service, &switched.from, &DrainRequest { timeout_ms, cut: None }).await
}

/// What became of a switch whose wait failed. It was done, so this is a failure and no refusal.
async fn afterwards(
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
    let now =
        now.unwrap_or_else(|| "; which backend is active now is unknown: run uh-proxy status".to_owned());
    let what = if undone {
        format!(
            "the switch from {from} to {to} was done, but somebody switched back to {from} before it was drained{now}"
        )
    } else {
        format!("the switch from {from} to {to} was done, but waiting for {from} to drain failed{now}")
    };
    Failed::from(anyhow::Error::from(error).context(what))
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
    switched.warnings.iter().try_for_each(|warning| say(format_args!("warning: {warning}")))?;
    if let Some(error) = &switched.persist_error {
        say(format_args!(
            "warning: {to} serves, but that is not on disk ({error}): a restart now may serve an older backend; uh-proxy keeps trying"
        ))?;
    }
    Ok(())
}
