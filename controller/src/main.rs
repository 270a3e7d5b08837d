//! `uh-deploy`: deploys, roll backs, and what belongs to them.

use std::process::ExitCode;

fn main() -> ExitCode {
    uh_controller::cli::main()
}
