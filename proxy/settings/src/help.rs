//! `--help` with the commands in groups.

use std::fmt::Write as _;

use clap::Command;

/// A command line whose top-level `--help` shows its commands under these headings: clap itself can only show them in
/// one list. Each group is a heading and the names of its commands.
#[must_use]
pub fn grouped(command: Command, groups: &[(&str, &[&str])]) -> Command {
    let listed = list(&command, groups);
    let names: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let hide = |command: Command, name| command.mut_subcommand(name, |command| command.hide(true));
    let template =
        format!("{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{listed}{{all-args}}{{after-help}}");
    names.into_iter().fold(command, hide).help_template(template)
}

fn list(command: &Command, groups: &[(&str, &[&str])]) -> String {
    let names = groups.iter().flat_map(|(_, names)| names.iter());
    let width = names.map(|name| name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for (heading, names) in groups {
        let _ = writeln!(text, "{heading}:");
        for command in names.iter().filter_map(|name| command.find_subcommand(name)) {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "  {:width$}  {about}", command.get_name());
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_stand_under_their_headings_and_in_no_other_list() {
        let command = Command::new("app")
            .subcommand(Command::new("up").about("Start"))
            .subcommand(Command::new("restart").about("Start again"));
        let groups: [(&str, &[&str]); 2] = [("First", &["restart"]), ("Second", &["up"])];
        let help = grouped(command, &groups).render_help().to_string();
        assert!(help.contains("First:\n  restart  Start again\n\nSecond:\n  up       Start\n"), "{help}");
        assert_eq!(help.matches("Start again").count(), 1, "{help}");
    }
}
