//! `uh-deploy completions` and `uh-deploy man`, which need no configuration.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap_complete::engine::CompletionCandidate;
use uh_settings::shell::{self, Shell};

use super::Done;
use super::args::{self, DEFAULT_CONFIG};
use super::exit::Exit;

pub(super) fn completions(shell: Shell) -> Done {
    let script = shell::script(shell, &args::ungrouped()).context("can't make the script")?;
    print(&script)
}

pub(super) fn man(directory: &Path) -> Done {
    let written =
        shell::write_man_pages(args::ungrouped(), directory).context("can't write the man pages")?;
    print(&format!("{written} pages written to {}", directory.display()))
}

fn print(text: &str) -> Done {
    match writeln!(io::stdout(), "{text}") {
        // A reader that closes the pipe early isn't a failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("can't print")?,
        _ => Ok(Exit::Done),
    }
}

/// The backends of the configuration in the line, or of the usual one. Where it can't be read, there are none.
pub(super) fn backends() -> Vec<CompletionCandidate> {
    let path = shell::option_in_line("--config")
        .or_else(|| std::env::var_os("UH_DEPLOY_CONFIG"))
        .map_or_else(|| DEFAULT_CONFIG.into(), PathBuf::from);
    let backends = crate::config::load(&path).map(|config| config.backends).unwrap_or_default();
    shell::candidates(backends.into_iter().map(|backend| backend.name))
}
