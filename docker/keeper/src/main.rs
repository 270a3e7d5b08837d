//! `uh-keeper`: holds the listening sockets of uh-proxy.

use std::process::ExitCode;

fn main() -> ExitCode {
    uh_keeper::cli::main()
}
