//! `uh-proxy`: the front door, and the client that talks to it.

use std::process::ExitCode;

fn main() -> ExitCode {
    uh_proxy::cli::main()
}
