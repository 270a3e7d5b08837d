//! Which process uses a port.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};

use crate::redact::Foreign;
use crate::runtime::Endpoint;
use crate::runtime::process::INSTANCE_VARIABLE;

/// Which process listens on an endpoint of this machine, if known: `node (pid 4711)`. `None`: none does, or the
/// endpoint belongs to another machine.
#[must_use]
pub fn taken_by(endpoint: &Endpoint) -> Option<String> {
    match endpoint {
        Endpoint::Socket(address) => in_use(*address).then(|| listener(address.port())),
        Endpoint::Name(host, port) => {
            let addresses = (host.as_str(), *port).to_socket_addrs().ok()?;
            addresses.into_iter().any(in_use).then(|| listener(*port))
        }
        Endpoint::Unix(path) => {
            std::os::unix::net::UnixStream::connect(path).is_ok().then(|| "another process".to_owned())
        }
    }
}

fn in_use(address: SocketAddr) -> bool {
    matches!(TcpListener::bind(address), Err(e) if e.kind() == ErrorKind::AddrInUse)
}

fn listener(port: u16) -> String {
    let inodes = listening_inodes(port);
    let unknown = || "a process of another user or container".to_owned();
    let Ok(processes) = fs::read_dir("/proc") else { return unknown() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| has_socket(*pid, &inodes)).map_or_else(unknown, |pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name = Foreign::new(&name);
        match instance(pid) {
            Some(instance) => format!("{} (pid {pid}) of instance {instance}", name.trimmed()),
            None => format!("{} (pid {pid})", name.trimmed()),
        }
    })
}

/// The instance that a process belongs to, if any: then that instance has to be stopped.
fn instance(pid: u32) -> Option<Foreign> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mark = format!("{INSTANCE_VARIABLE}=");
    let mut variables = environment.split(|byte| *byte == 0);
    variables.find_map(|variable| variable.strip_prefix(mark.as_bytes()).map(Foreign::from_bytes))
}

/// proc(5), /proc/net/tcp: local address `HEX:PORT`, state 0A is LISTEN, the inode is the tenth field.
fn listening_inodes(port: u16) -> HashSet<String> {
    let suffix = format!(":{port:04X}");
    let mut inodes = HashSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            if let [_, local, _, "0A", _, _, _, _, _, inode, ..] = fields[..]
                && local.ends_with(&suffix)
            {
                inodes.insert(format!("socket:[{inode}]"));
            }
        }
    }
    inodes
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
    fn a_port_in_use_names_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint: Endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
        let by = taken_by(&endpoint).unwrap();
        assert!(by.contains(&format!("(pid {})", std::process::id())), "{by}");
        drop(listener);
        assert_eq!(taken_by(&endpoint), None);
    }
}
