//! Puts a supervisor into its own control group, under systemd.
//!
//! A process stays in the control group it was started in: that of a systemd unit, a CI job or a login. When that
//! ends, systemd kills everything in it, including the app. So if possible, the supervisor gets its own scope:
//! `systemd-run --scope` creates one and then executes the command in the same process.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Exists if systemd manages the machine (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Without it, systemd stops the whole scope, including the supervisor, when the kernel kills the app for lack of
/// memory, and nothing restarts the app. Before systemd 253, scopes don't support this option and don't need it.
const OOM_POLICY: &str = "--property=OOMPolicy=continue";

/// Has a file for each user whose service manager outlives their logins (loginctl(1), enable-linger).
const LINGER: &str = "/var/lib/systemd/linger";

/// The commands that execute `supervisor` in a scope of this name, to be tried in this order. Empty if no scope can
/// be created.
pub(super) fn commands(supervisor: &Command, instance: &str) -> Vec<Command> {
    let Some((program, manager)) = maker() else { return Vec::new() };
    [&[OOM_POLICY][..], &[]].map(|options| scoped(&program, &manager, options, supervisor, instance)).into()
}

fn maker() -> Option<(PathBuf, Manager)> {
    if !Path::new(BOOTED).is_dir() {
        return None;
    }
    let path = std::env::var_os("PATH")?;
    let program =
        std::env::split_paths(&path).map(|dir| dir.join("systemd-run")).find(|path| path.is_file())?;
    let manager = if rustix::process::geteuid().is_root() { Manager::System } else { Manager::lingering()? };
    Some((program, manager))
}

/// The service manager that creates the scope.
enum Manager {
    System,
    /// The user's, with its runtime directory. Without lingering it ends at the last logout, with all its scopes.
    User(String),
}

impl Manager {
    fn lingering() -> Option<Self> {
        let user = std::env::var("USER").ok().filter(|user| !user.is_empty() && !user.contains('/'))?;
        let directory = std::env::var("XDG_RUNTIME_DIR").ok()?;
        Path::new(LINGER).join(user).exists().then_some(Self::User(directory))
    }
}

fn scoped(
    program: &Path,
    manager: &Manager,
    options: &[&str],
    supervisor: &Command,
    instance: &str,
) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    if let Manager::User(directory) = manager {
        command.arg("--user").env("XDG_RUNTIME_DIR", directory);
    }
    command.args(["--scope", "--quiet", "--collect"]).arg(format!("--unit=uh-app-{instance}.scope"));
    command
        .args(options)
        .arg("--")
        .arg(supervisor.get_program())
        .args(supervisor.get_args())
        .current_dir("/");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_named_after_its_instance_and_executes_the_supervisor() {
        let mut supervisor = Command::new("/usr/bin/uh-deploy");
        supervisor.arg("supervise").arg("/var/lib/x/instances/app.blue.1");
        let words = |manager| {
            let command =
                scoped(Path::new("/bin/systemd-run"), &manager, &[OOM_POLICY], &supervisor, "app.blue.1");
            let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
            words.join(" ")
        };
        let rest = "--scope --quiet --collect --unit=uh-app-app.blue.1.scope --property=OOMPolicy=continue -- \
                    /usr/bin/uh-deploy supervise /var/lib/x/instances/app.blue.1";
        assert_eq!(words(Manager::System), rest);
        assert_eq!(words(Manager::User("/run/user/7".to_owned())), format!("--user {rest}"));
    }
}
