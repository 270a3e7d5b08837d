//! Finds the process that listens on a local address, from proc(5). Only root can see other users' processes.

use std::collections::HashSet;
use std::fmt::{self, Write as _};
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;

/// A listening process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its process id.
    pub pid: u32,
    /// Its program's name, which the process chooses itself: control characters in it are escaped.
    pub program: String,
}

impl Listener {
    /// A variable from the environment it was started with, if readable.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<Vec<u8>> {
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let value =
            |variable: &[u8]| Some(variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?.to_vec());
        variables.find_map(value)
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.program, self.pid)
    }
}

/// Shown for a listener that can't be found.
pub const UNKNOWN: &str = "a process of another user or container";

/// Whether this address is in use, so that no listener can be bound to it.
#[must_use]
pub fn is_taken(address: SocketAddr) -> bool {
    matches!(TcpListener::bind(address), Err(e) if e.kind() == ErrorKind::AddrInUse)
}

/// The process that listens on this address. `None`: none, or one that can't be seen.
#[must_use]
pub fn listener(address: SocketAddr) -> Option<Listener> {
    of_inodes(&listening_inodes(address))
}

/// The process that listens on this Unix socket, bound under the same path. `None`: none, or one that can't be seen.
#[must_use]
pub fn listener_at(path: &Path) -> Option<Listener> {
    of_inodes(&listening_inodes_at(path))
}

fn of_inodes(inodes: &HashSet<String>) -> Option<Listener> {
    if inodes.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?;
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.into_iter().find(|pid| has_socket(*pid, inodes))?;
    let program = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Listener { pid, program: escaped(String::from_utf8_lossy(&program).trim()) })
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        if c.is_control() {
            // A string takes all that is written to it.
            let _ = write!(out, "\\x{:02x}", u32::from(c));
        } else {
            out.push(c);
        }
        out
    })
}

/// proc(5), /proc/net/tcp: local address `HEX:PORT`, state 0A is LISTEN, the inode is the tenth field.
fn listening_inodes(address: SocketAddr) -> HashSet<String> {
    let mut inodes = HashSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            if let [_, local, _, "0A", _, _, _, _, _, inode, ..] = fields[..]
                && parse(local).is_some_and(|local| covers(local, address))
            {
                inodes.insert(format!("socket:[{inode}]"));
            }
        }
    }
    inodes
}

/// Whether connections to an address reach a listener bound to this one.
fn covers((ip, port): (IpAddr, u16), address: SocketAddr) -> bool {
    let wildcard = ip.is_unspecified() || address.ip().is_unspecified();
    port == address.port() && (wildcard || ip.to_canonical() == address.ip().to_canonical())
}

/// `0100007F:0BC0`: words of 32 bits, each in the machine's own byte order.
fn parse(local: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = local.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            IpAddr::from(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

/// proc(5), /proc/net/unix: the fourth field has the flag `00010000` for a listener, the seventh is the inode, the path is
/// the rest.
fn listening_inodes_at(path: &Path) -> HashSet<String> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let inode = |line: &str| {
        let (mut fields, mut rest) = ([""; 7], line);
        for field in &mut fields {
            // A socket without a path ends here.
            (*field, rest) = rest.trim_start().split_once(' ')?;
        }
        let [_, _, _, flags, _, _, inode] = fields;
        let fits = flags == "00010000" && Path::new(rest) == path;
        fits.then(|| format!("socket:[{inode}]"))
    };
    table.lines().skip(1).filter_map(inode).collect()
}

fn has_socket(pid: u32, inodes: &HashSet<String>) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let mut links = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    links.any(|link| link.to_str().is_some_and(|link| inodes.contains(link)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_at_its_own_address_and_no_other() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        assert!(is_taken(address));
        let found = listener(address).unwrap();
        assert_eq!(found.pid, std::process::id());
        assert!(found.to_string().ends_with(&format!(" (pid {})", std::process::id())), "{found}");
        assert_eq!(listener(SocketAddr::from(([127, 0, 0, 2], address.port()))), None);
        drop(socket);
        assert_eq!((listener(address), is_taken(address)), (None, false));
    }

    #[test]
    fn a_listener_on_every_address_is_found_at_each() {
        let socket = TcpListener::bind("[::]:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let found = listener(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        assert_eq!(found.pid, std::process::id());
    }

    #[test]
    fn a_listener_at_a_path_is_found_too() {
        let path = std::env::temp_dir().join(format!("uh system {}.sock", std::process::id()));
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(listener_at(&path).map(|found| found.pid), Some(std::process::id()));
        drop(socket);
        fs::remove_file(&path).unwrap();
        assert_eq!(listener_at(&path), None);
    }

    #[test]
    fn a_name_with_control_characters_is_shown_escaped() {
        assert_eq!(escaped("a\x1b[31mb"), "a\\x1b[31mb");
    }
}
