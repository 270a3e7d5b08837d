//! `uh-proxy backend set`, `unset` and `withdraw`

use uh_protocol::ServiceName;
use uh_protocol::request::{BackendRequest, Registered, UnsetRequest, WithdrawRequest, Withdrawn};

use super::args::{BackendSetArgs, BackendUnsetArgs, BackendWithdrawArgs};
use super::exit::{Exit, Failed};
use super::{Done, say, say_json, target};

pub(super) fn set(args: &BackendSetArgs) -> Done {
    target::call(async {
        let client = target::client(&args.client);
        let service = target::service(&client, &args.service).await?;
        let request = BackendRequest {
            endpoints: args.endpoints.clone(),
            version: args.version.clone(),
            expect_generation: None,
            force: args.force,
        };
        let registered = client.set_backend(&service, &args.backend, &request).await?;
        report(&service, &registered, args.client.json)
    })
}

pub(super) fn unset(args: &BackendUnsetArgs) -> Done {
    target::call(async {
        let client = target::client(&args.client);
        let service = target::service(&client, &args.service).await?;
        let request = UnsetRequest { expect_generation: args.expect_generation, force: args.force };
        let registered = client.unset_backend(&service, &args.backend, &request).await?;
        report(&service, &registered, args.client.json)
    })
}

pub(super) fn withdraw(args: &BackendWithdrawArgs) -> Done {
    target::call(async {
        let client = target::client(&args.client);
        let service = target::service(&client, &args.service).await?;
        let request = WithdrawRequest { expect_generation: args.expect_generation };
        let withdrawn = client.withdraw(&service, &args.backend, &request).await?;
        let Withdrawn { backend, changed, generation, requests_in_flight, tunnels, .. } = &withdrawn;
        if args.client.json {
            say_json(&withdrawn)?;
        } else {
            let what = if *changed { "withdrawn" } else { "already withdrawn" };
            say(format_args!(
                "{service}: {backend} is {what} (generation {generation}); {requests_in_flight} requests and {tunnels} tunnels in flight on it"
            ))?;
            warn(withdrawn.persist_error.as_deref())?;
        }
        Ok(exit(withdrawn.persisted))
    })
}

fn report(service: &ServiceName, registered: &Registered, json: bool) -> Done {
    if json {
        say_json(registered)?;
    } else {
        let backend = &registered.backend;
        let endpoints: Vec<&str> =
            backend.endpoints.iter().map(|endpoint| endpoint.address.as_str()).collect();
        let version = backend.version.as_deref().unwrap_or("unknown");
        say(format_args!("{service}: {} is at {}, version {version}", backend.name, endpoints.join(", ")))?;
        warn(registered.persist_error.as_deref())?;
    }
    Ok(exit(registered.persisted))
}

fn warn(persist_error: Option<&str>) -> Result<(), Failed> {
    persist_error.map_or(Ok(()), |error| {
        say(format_args!(
            "warning: applied, but not saved to disk ({error}): a restart now would undo it; uh-proxy keeps retrying"
        ))
    })
}

fn exit(persisted: bool) -> Exit {
    if persisted { Exit::Done } else { Exit::NotOnDisk }
}
