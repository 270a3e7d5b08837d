//! `app-shim`: process 1 in front of any app.

use std::process::ExitCode;

fn main() -> ExitCode {
    uh_app_shim::cli::main()
}
