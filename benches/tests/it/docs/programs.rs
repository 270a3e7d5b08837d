//! Every command, option and exit code that `--help` names stands in docs/cli.md, and nothing else does.

use std::collections::BTreeSet;
use std::process::Command;

use uh_testkit::process;

use super::{chapter, quoted, rows, text};

const PROGRAMS: [&str; 3] = ["uh-proxy", "uh-deploy", "app-shim"];

/// What a program says of itself: every command with its options, and the exit codes.
#[derive(Default)]
struct Help {
    commands: BTreeSet<String>,
    options: BTreeSet<String>,
    exit_codes: BTreeSet<String>,
}

impl Help {
    fn of(program: &str) -> Self {
        let mut help = Self::default();
        help.read(program, &[]);
        help
    }

    fn read(&mut self, program: &str, command: &[&str]) {
        let output =
            Command::new(process::program(program).unwrap()).args(command).arg("--help").output().unwrap();
        assert!(output.status.success(), "{program} {command:?} --help");
        let text = String::from_utf8(output.stdout).unwrap();
        let mut in_commands = false;
        for line in text.lines() {
            if !line.starts_with(' ') {
                in_commands = line.to_lowercase().ends_with("commands:");
            }
            let word = line.split_whitespace().next().unwrap_or_default();
            if in_commands && line.starts_with("  ") && !line.starts_with("   ") && word != "help" {
                let deeper: Vec<&str> = command.iter().copied().chain([word]).collect();
                self.commands.insert(deeper.join(" "));
                self.read(program, &deeper);
            }
            if line.trim_start().starts_with('-') {
                let names =
                    line.split([',', ' ', '=', '[']).filter(|word| word.starts_with("--") && word.len() > 2);
                self.options.extend(names.take(1).map(str::to_owned));
            }
        }
        if let Some((_, codes)) = text.split_once("Exit codes:") {
            let parts = codes.split(['·', '\n']);
            let first = parts.filter_map(|part| part.split_whitespace().find(|word| is_code(word)));
            self.exit_codes.extend(first.map(str::to_owned));
        }
    }
}

/// `3` or `128+n`.
fn is_code(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit())
        && word.strip_suffix("+n").unwrap_or(word).parse::<u8>().is_ok()
}

fn page() -> String {
    text("docs/cli.md")
}

#[test]
fn every_command_and_option_is_documented() {
    let page = page();
    for program in PROGRAMS {
        let (help, chapter) = (Help::of(program), chapter(&page, &format!("## {program}")));
        assert!(help.options.len() > 5, "{program}: {:?}", help.options);
        let first_cells: Vec<String> =
            rows(chapter).flat_map(|row| quoted(row[0]).map(str::to_owned).collect::<Vec<_>>()).collect();
        for command in &help.commands {
            let line = format!("{program} {command}");
            let there = first_cells.iter().any(|cell| cell.starts_with(&line));
            assert!(there, "`{line}` is not in docs/cli.md");
        }
        let names = first_cells.iter().filter(|cell| cell.starts_with("--"));
        let documented: BTreeSet<String> =
            names.filter_map(|cell| cell.split_whitespace().next()).map(str::to_owned).collect();
        let general = ["--help", "--version"].map(str::to_owned);
        for option in help.options.iter().filter(|option| !general.contains(option)) {
            assert!(documented.contains(option), "{program}'s {option} is not in docs/cli.md");
        }
        for option in &documented {
            assert!(help.options.contains(option), "docs/cli.md has {option}, and {program} has not");
        }
    }
}

#[test]
fn every_exit_code_is_documented() {
    let page = page();
    for program in PROGRAMS {
        let chapter = chapter(&page, &format!("## {program}"));
        let (_, table) = chapter.split_once("| exit code |").unwrap();
        let table = table.split("\n\n").next().unwrap();
        let cells = rows(table).map(|row| row[0].to_owned()).collect::<Vec<_>>().join(" ");
        let documented: BTreeSet<String> =
            cells.split([' ', ',']).filter(|word| is_code(word)).map(str::to_owned).collect();
        assert_eq!(Help::of(program).exit_codes, documented, "{program}: --help, and docs/cli.md");
    }
}
