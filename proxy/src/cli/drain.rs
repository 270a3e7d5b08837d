//! `uh-proxy drain`

use uh_protocol::BackendName;
use uh_protocol::request::{DrainRequest, Drained};

use super::args::DrainArgs;
use super::exit::{Exit, Failed};
use super::{Done, say, say_json, target};

pub(super) fn drain(args: &DrainArgs) -> Done {
    target::call(async {
        let client = target::client(&args.client);
        let service = target::service(&client, &args.service).await?;
        let timeout_ms = args.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        let drained = client
            .drain(&service, &args.backend, &DrainRequest { timeout_ms, cut: args.cut.then_some(true) })
            .await?;
        if args.client.json {
            say_json(&drained)?;
        } else {
            report(&args.backend, &drained)?;
        }
        Ok(if drained.drained { Exit::Done } else { Exit::Failed })
    })
}

/// Prints the result of a drain.
pub(super) fn report(backend: &BackendName, drained: &Drained) -> Result<(), Failed> {
    let Drained { waited_ms, finished, cut, remaining, .. } = drained;
    if drained.drained {
        return say(format_args!("{backend}: drained in {waited_ms} ms ({finished} finished, {cut} cut)"));
    }
    say(format_args!(
        "{backend}: not drained after {waited_ms} ms: {} requests and {} tunnels are left ({finished} finished, {cut} cut)",
        remaining.requests, remaining.tunnels
    ))
}
