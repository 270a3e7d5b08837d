//! Completions for shells, and man pages, both from the definitions that `--help` is made of.
//!
//! A shell asks the program itself what may come next, with a variable in its environment, so that names that only a
//! running system knows can be completed, too. Everything takes the command line as it is defined, without the groups of
//! [`crate::help`], which hide its commands from lists.

use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, ValueEnum};
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{Bash, CompleteEnv, EnvCompleter, Fish, Zsh};
use clap_mangen::Man;

/// A shell that completes names with the program's help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash 4.4 or newer, without the package bash-completion.
    Bash,
    /// fish.
    Fish,
    /// zsh, after `compinit`.
    Zsh,
}

/// Tells a shell's question from an ordinary run.
const VARIABLE: &str = "UH_COMPLETE";

/// If a shell asks what may come next, answers and ends the process. Call this before anything is printed.
pub fn answer_shell(command: fn() -> Command) {
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

/// The script that makes a shell ask the program of this command line, found in `PATH`.
///
/// # Errors
/// The script isn't text.
pub fn script(shell: Shell, command: &Command) -> io::Result<String> {
    let shell: &dyn EnvCompleter = match shell {
        Shell::Bash => &Bash,
        Shell::Fish => &Fish,
        Shell::Zsh => &Zsh,
    };
    let name = command.get_name();
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, name, name, name, &mut script)?;
    String::from_utf8(script).map_err(io::Error::other)
}

/// Names to choose from.
pub fn candidates<T: Display>(names: impl IntoIterator<Item = T>) -> Vec<CompletionCandidate> {
    names.into_iter().map(|name| CompletionCandidate::new(name.to_string())).collect()
}

/// The value of an option in the line that a shell asks about, such as `--config`. The line isn't complete, so clap can't
/// parse it.
#[must_use]
pub fn option_in_line(option: &str) -> Option<OsString> {
    value_of(option, std::env::args_os())
}

fn value_of(option: &str, line: impl IntoIterator<Item = OsString>) -> Option<OsString> {
    let mut words = line.into_iter();
    while let Some(word) = words.next() {
        if word == option {
            return words.next();
        }
        let value = word.to_str().and_then(|word| word.strip_prefix(option)?.strip_prefix('='));
        if let Some(value) = value {
            return Some(value.into());
        }
    }
    None
}

/// A man page could not be written.
#[derive(Debug, thiserror::Error)]
#[error("can't write {}", path.display())]
pub struct ManError {
    path: PathBuf,
    source: io::Error,
}

/// Writes the man pages of a program and its commands into a directory, which must be there, and returns how many.
///
/// # Errors
/// A page can't be written.
pub fn write_man_pages(command: Command, directory: &Path) -> Result<usize, ManError> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut written = 0;
    write_pages_of(&command, directory, &mut written)?;
    Ok(written)
}

fn write_pages_of(command: &Command, directory: &Path, written: &mut usize) -> Result<(), ManError> {
    let page = Man::new(command.clone());
    let path = directory.join(page.get_filename());
    page.generate_to(directory).map_err(|source| ManError { path, source })?;
    *written += 1;
    command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .try_for_each(|command| write_pages_of(command, directory, written))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(line: &str) -> Option<String> {
        value_of("--config", line.split(' ').map(OsString::from)).map(|value| value.into_string().unwrap())
    }

    #[test]
    fn an_option_is_found_in_both_forms_and_only_whole() {
        assert_eq!(value("uh-deploy --config a.toml logs"), Some("a.toml".to_owned()));
        assert_eq!(value("uh-deploy logs --config=b.toml"), Some("b.toml".to_owned()));
        assert_eq!(value("uh-deploy --configuration c.toml"), None);
        assert_eq!(value("uh-deploy --config"), None);
    }
}
