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
            none if none.is_empty() => "reloaded: nothing is different".to_owned(),
            changed => format!("reloaded: {changed}"),
        };
        say(format_args!("{what} (generation {})", reloaded.generation))?;
        if !reloaded.needs_restart.is_empty() {
            say(format_args!("not in force before a restart: {}", reloaded.needs_restart.join(", ")))?;
        }
        if !reloaded.overridden.is_empty() {
            say(format_args!(
                "overridden by a registration, so not in force: {} (`uh-proxy backend unset` drops it)",
                reloaded.overridden.join(", ")
            ))?;
        }
        if let Some(error) = &reloaded.persist_error {
            say(format_args!(
                "warning: in force, but not on disk ({error}): a restart now may serve an older backend; uh-proxy keeps trying"
            ))?;
        }
        Ok(exit(reloaded.persisted))
    })
}

fn exit(persisted: bool) -> Exit {
    if persisted { Exit::Done } else { Exit::NotOnDisk }
}
