//! `uh-proxy switch` of several services

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, json};
use tokio::task::JoinSet;
use uh_protocol::ServiceName;
use uh_protocol::client::Client;
use uh_protocol::request::{Drained, ReleaseRequest, Released, Switched};

use super::args::SwitchArgs;
use super::exit::{Exit, Failed};
use super::{Done, complain, drain, say, say_json, switch, target};

/// How the drain ended in each service that was switched.
type Drains = BTreeMap<ServiceName, (Switched, Result<Drained, Failed>)>;

pub(super) fn release(args: &SwitchArgs) -> Done {
    if args.expect_active.is_some() {
        let message = "--expect-active is for a switch of one service; use --expect-generation for several";
        return Err(Failed::usage(message.to_owned()));
    }
    target::call(async {
        let client = target::client(&args.client);
        let request = ReleaseRequest {
            services: args.services.iter().map(|service| (service.clone(), args.backend.clone())).collect(),
            expect_generation: args.expect_generation,
            force: args.force,
        };
        let released = client.release(&request).await?;
        // The switch is done now: a failure of the wait is reported after it, never instead of it.
        if !args.client.json {
            report(&released)?;
        }
        let persisted = if released.persisted { Exit::Done } else { Exit::NotOnDisk };
        let Some(timeout) = args.wait_drain.filter(|_| released.changed) else {
            if args.client.json {
                say_json(&released)?;
            }
            return Ok(persisted);
        };
        let drains = wait(&client, &released, timeout).await;
        if args.client.json {
            let each = drains.iter().map(|(service, (_, done))| {
                let done = match done {
                    Ok(drained) => json!(drained),
                    Err(failed) => failed.json(),
                };
                (service.to_string(), done)
            });
            say_json(&json!({"switch": released, "drains": each.collect::<Map<_, _>>()}))?;
        }
        conclude(args, &drains, persisted)
    })
}

/// Waits for all old backends at the same time.
async fn wait(client: &Client, released: &Released, timeout: Duration) -> Drains {
    let mut drains = JoinSet::new();
    for switched in each(released).filter(|switched| switched.changed) {
        let (client, service) = (client.clone(), switched.service.clone());
        drains.spawn(async move {
            let done = match switch::wait(&client, &service, &switched, timeout).await {
                Ok(drained) => Ok(drained),
                Err(error) => Err(switch::afterwards(&client, &service, &switched, error).await),
            };
            (service, (switched, done))
        });
    }
    drains.join_all().await.into_iter().collect()
}

fn conclude(args: &SwitchArgs, drains: &Drains, persisted: Exit) -> Done {
    let mut exit = persisted;
    for (service, (switched, done)) in drains {
        match done {
            Ok(drained) => {
                if !args.client.json {
                    say(format_args!("{service}:"))?;
                    drain::report(&switched.from, drained)?;
                }
                if !drained.drained && persisted == Exit::Done {
                    exit = Exit::Failed;
                }
            }
            Err(failed) => {
                complain(format_args!("{service}: {}", failed.message()));
                exit = failed.exit();
            }
        }
    }
    Ok(exit)
}

/// What happened in each service. That it isn't on disk is said once, of all of them.
fn each(released: &Released) -> impl Iterator<Item = Switched> {
    let switched = released.services.keys().filter_map(|service| released.of(service));
    switched.map(|switched| Switched { persist_error: None, ..switched })
}

fn report(released: &Released) -> Result<(), Failed> {
    each(released).try_for_each(|switched| switch::report(&switched))?;
    if let Some(error) = &released.persist_error {
        say(format_args!(
            "warning: the switch is done, but not saved to disk ({error}): a restart now may activate older backends; uh-proxy keeps retrying"
        ))?;
    }
    Ok(())
}
