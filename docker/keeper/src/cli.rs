//! The command line: `uh-keeper listen` holds sockets, `uh-keeper list` shows what a running keeper holds.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;
use uh_system::plain;

use crate::serve::serve;
use crate::sockets::Sockets;
use crate::wire::{DEFAULT_SOCKET, Link, MOST_SOCKETS};

const HELP: &str = "\
Hold the listening sockets of uh-proxy, so that no client is refused while uh-proxy is replaced

Usage: uh-keeper listen [--socket PATH] ADDRESS...
       uh-keeper list [--socket PATH]

Commands:
  listen  Hold listening sockets on these addresses, such as 0.0.0.0:80 or [::]:443, and pass them to uh-proxy
  list    Show the addresses that a running uh-keeper holds; fails if one is missing

Options:
      --socket PATH  The Unix socket that uh-proxy connects to (server.keeper) [default: /run/uh-keeper/sock]
  -h, --help         Print help
  -V, --version      Print version

Exit codes: 0 done · 1 failed · 2 invalid arguments
";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Version,
    Listen { socket: PathBuf, addresses: Vec<SocketAddr> },
    List { socket: PathBuf },
}

/// Runs the command that was typed.
pub fn main() -> ExitCode {
    let command = match parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(mistake) => {
            report(format_args!("{mistake}. See uh-keeper --help"));
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            report(plain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match command {
        Command::Help => say(HELP)?,
        Command::Version => say(concat!("uh-keeper ", env!("CARGO_PKG_VERSION"), "\n"))?,
        Command::List { socket } => return list(&socket),
        Command::Listen { socket, addresses } => {
            handle_signals()?;
            serve(&socket, Sockets::new(&addresses), |line| report(line))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// As process 1 of a container, it is only ended by signals that it handles.
fn handle_signals() -> io::Result<()> {
    for signal in [SIGTERM, SIGINT, SIGQUIT] {
        flag::register_conditional_shutdown(signal, 0, Arc::new(AtomicBool::new(true)))?;
    }
    // A terminal that goes away must not close the ports.
    flag::register(SIGHUP, Arc::default())?;
    Ok(())
}

fn list(socket: &std::path::Path) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let answer = Link::connect(socket)?.ask(&[])?;
    for (address, _) in &answer.held {
        say(&format!("{address}\n"))?;
    }
    for (address, reason) in &answer.missing {
        report(format_args!("{address} is missing: {reason}"));
    }
    Ok(if answer.missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let (mut words, mut socket) = (Vec::new(), PathBuf::from(DEFAULT_SOCKET));
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-h" | "--help" => return Ok(Command::Help),
            "-V" | "--version" => return Ok(Command::Version),
            "--socket" => socket = arguments.next().ok_or("--socket needs a path")?.into(),
            other => match other.strip_prefix("--socket=") {
                Some(path) => socket = path.into(),
                None if other.starts_with('-') => return Err(format!("unknown option {other}")),
                None => words.push(argument),
            },
        }
    }
    let mut words = words.into_iter();
    match words.next().as_deref() {
        Some("listen") => Ok(Command::Listen { socket, addresses: addresses(words)? }),
        Some("list") => match words.next() {
            Some(extra) => Err(format!("unexpected argument {extra:?}")),
            None => Ok(Command::List { socket }),
        },
        Some(other) => Err(format!("unknown command {other:?}")),
        None => Err("a command is missing".to_owned()),
    }
}

fn addresses(words: impl Iterator<Item = String>) -> Result<Vec<SocketAddr>, String> {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for word in words {
        let address = word
            .parse()
            .map_err(|_| format!("{word:?} isn't an address: use IP:port, such as 0.0.0.0:80 or [::]:80"))?;
        if addresses.contains(&address) && address.port() != 0 {
            return Err(format!("duplicate address {address}"));
        }
        addresses.push(address);
    }
    match addresses.len() {
        0 => Err("listen needs at least one address".to_owned()),
        1..=MOST_SOCKETS => Ok(addresses),
        _ => Err(format!("a uh-keeper holds at most {MOST_SOCKETS} addresses")),
    }
}

/// Prints to standard output. A reader that closes the pipe early isn't a failure.
fn say(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Prints a line to standard error. If that is closed, nothing more can be done.
fn report(line: impl Display) {
    let _ = writeln!(io::stderr(), "uh-keeper: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn addresses_and_the_socket_are_read_in_any_order() {
        let expected = Command::Listen {
            socket: "/tmp/s".into(),
            addresses: vec!["0.0.0.0:80".parse().unwrap(), "[::]:80".parse().unwrap()],
        };
        assert_eq!(typed("listen --socket /tmp/s 0.0.0.0:80 [::]:80").as_ref(), Ok(&expected));
        assert_eq!(typed("listen 0.0.0.0:80 [::]:80 --socket=/tmp/s"), Ok(expected));
        assert_eq!(typed("list"), Ok(Command::List { socket: DEFAULT_SOCKET.into() }));
        assert_eq!(typed("listen --help"), Ok(Command::Help));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, part) in [
            ("", "a command is missing"),
            ("start", "unknown command \"start\""),
            ("listen", "at least one address"),
            ("listen :80", "\":80\" isn't an address"),
            ("listen 0.0.0.0:80 0.0.0.0:80", "duplicate address 0.0.0.0:80"),
            ("listen --port 80", "unknown option --port"),
            ("list --socket", "--socket needs a path"),
            ("list 0.0.0.0:80", "unexpected argument"),
        ] {
            let mistake = typed(line).unwrap_err();
            assert!(mistake.contains(part), "{line}: {mistake}");
        }
        assert!(HELP.contains(DEFAULT_SOCKET));
    }
}
