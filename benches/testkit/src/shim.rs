//! app-shim as a real program.

use std::process::Command;

use anyhow::Result;

use crate::process::program;

/// A shim with these options that starts this command. Often the app is another process, and listens already.
///
/// # Errors
/// When it is not built.
pub fn command(options: &[&str], app: &[&str]) -> Result<Command> {
    let mut command = Command::new(program("app-shim")?);
    command.args(options).arg("--").args(app).env("APP_SHIM_ALLOW_LISTENING", "1");
    Ok(command)
}
