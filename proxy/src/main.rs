//! `uh-proxy`: the proxy, and its admin client.

use std::process::ExitCode;

fn main() -> ExitCode {
    uh_proxy::cli::main()
}
