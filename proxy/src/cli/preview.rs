//! `uh-proxy preview`

use uh_protocol::request::{PreviewReply, PreviewRequest, preview_link};

use super::args::PreviewArgs;
use super::exit::{Exit, Failed};
use super::{Done, say, say_json, target};

pub(super) fn preview(args: &PreviewArgs) -> Done {
    target::call(async {
        let client = target::client(&args.client);
        let service = target::service(&client, &args.service).await?;
        let ttl_ms = args.duration.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        let request = PreviewRequest { to: args.backend.clone(), ttl_ms };
        let mut reply = client.preview(&service, &request).await?;
        if let Some(url) = &args.url {
            reply.link = Some(preview_link(url, &reply.token));
        }
        if args.client.json {
            say_json(&reply)?;
        } else {
            report(&reply)?;
        }
        Ok(Exit::Done)
    })
}

fn report(reply: &PreviewReply) -> Result<(), Failed> {
    let PreviewReply { service, backend, token, until, link } = reply;
    match link {
        Some(link) => say(link)?,
        None => say(format_args!("any address of {service} with {}", preview_link("", token)))?,
    }
    say(format_args!("{service}: whoever has this link gets {backend}, until {until}"))?;
    say(format_args!("for tests and API clients: X-UH-Preview: {token}"))
}
