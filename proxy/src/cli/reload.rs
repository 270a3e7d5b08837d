//! `uh-proxy reload`

use super::args::ReloadArgs;
use super::exit::Exit;
use super::{Done, say, say_json, target};

pub(super) fn reload(args: &ReloadArgs) -> Done {
    target::call(async {
        let reloaded = target::client(&args.client).reload().await?;
        if args.client.json {
            say_json(&reloaded)?;
            return Ok(Exit::Done);
        }
        let what = match reloaded.changed.join(", ") {
            none if none.is_empty() => "reloaded: nothing is different".to_owned(),
            changed => format!("reloaded: {changed}"),
        };
        say(format_args!("{what} (generation {})", reloaded.generation))?;
        if !reloaded.needs_restart.is_empty() {
            say(format_args!("not in force before a restart: {}", reloaded.needs_restart.join(", ")))?;
        }
        Ok(Exit::Done)
    })
}
