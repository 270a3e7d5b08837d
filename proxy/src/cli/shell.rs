//! `uh-proxy completions` and `uh-proxy man`

use std::path::Path;

use uh_settings::shell::{self, Shell};

use super::exit::Exit;
use super::{Done, args, print, say};

pub(super) fn completions(shell: Shell) -> Done {
    let script = shell::script(shell, &args::ungrouped()).map_err(anyhow::Error::from)?;
    print(script)?;
    Ok(Exit::Done)
}

pub(super) fn man(directory: &Path) -> Done {
    let written = shell::write_man_pages(args::ungrouped(), directory).map_err(anyhow::Error::from)?;
    say(format_args!("{written} pages written to {}", directory.display()))?;
    Ok(Exit::Done)
}
