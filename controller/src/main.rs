//! `uh-deploy`: the controller.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if let (Some("keep"), Some(directory)) =
        (arguments.next().as_deref().and_then(|a| a.to_str()), arguments.next())
    {
        return match uh_controller::runtime::process::keeper::keep(PathBuf::from(directory)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    ExitCode::from(2)
}
