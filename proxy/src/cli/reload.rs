//! `uh-proxy reload`

use super::args::ReloadArgs;
use super::exit::Exit;
use super::{Done, say, say_json, target};

pub(super) fn reload(args: &ReloadArgs) -> Done {
    target::call(async {
        let reloaded = target::client(&args.client).reload().await?;
        if args.client.json {
            say_json(&reloaded)?;
            return Ok(exit(reloaded.persisted));
        }
        let what = match reloaded.changed.join(", ") {
            none if none.is_empty() => "reloaded: no changes".to_owned(),
            changed => format!("reloaded: {changed}"),
        };
        say(format_args!("{what} (generation {})", reloaded.generation))?;
        if !reloaded.needs_restart.is_empty() {
            say(format_args!("takes effect after a restart: {}", reloaded.needs_restart.join(", ")))?;
        }
        if !reloaded.overridden.is_empty() {
            say(format_args!(
                "not applied, because a registration overrides it: {} (`uh-proxy backend unset` drops the registration)",
                reloaded.overridden.join(", ")
            ))?;
        }
        if let Some(error) = &reloaded.persist_error {
            say(format_args!(
                "warning: applied, but not saved to disk ({error}): a restart now may activate an older backend; uh-proxy keeps retrying"
            ))?;
        }
        Ok(exit(reloaded.persisted))
    })
}

fn exit(persisted: bool) -> Exit {
    if persisted { Exit::Done } else { Exit::NotOnDisk }
}
