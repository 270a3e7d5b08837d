//! `uh-deploy`: deploys, rollbacks and related commands.

use std::process::ExitCode;

fn main() -> ExitCode {
    uh_controller::cli::main()
}
