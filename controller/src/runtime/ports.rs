//! Which process uses a port.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;

use uh_protocol::Address;
use uh_system::ports::{self, Listener, UNKNOWN};

use super::InstanceId;
use super::process::INSTANCE_VARIABLE;
use crate::redact::Foreign;

/// Which process holds an endpoint, as far as that can be determined.
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    listener: Option<Listener>,
    /// The instance it belongs to, if any: stopping that instance frees the endpoint.
    instance: Option<Foreign>,
}

impl Taken {
    fn by(listener: Option<Listener>) -> Self {
        let mark = listener.as_ref().and_then(|listener| listener.variable(INSTANCE_VARIABLE));
        Self { listener, instance: mark.map(|mark| Foreign::from_bytes(&mark)) }
    }

    /// Whether it is a process of this instance.
    #[must_use]
    pub(crate) fn is_of(&self, instance: &InstanceId) -> bool {
        self.instance.as_ref().is_some_and(|own| own.as_str() == instance.as_str())
    }
}

/// `node (pid 4711)`
impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.listener {
            Some(listener) => write!(f, "{}", Foreign::new(&listener.to_string()))?,
            None => f.write_str(UNKNOWN)?,
        }
        self.instance.as_ref().map_or(Ok(()), |instance| write!(f, " of instance {instance}"))
    }
}

/// Who listens at an endpoint of this machine. `None`: no process, or the endpoint is on another machine.
#[must_use]
pub(crate) fn taken_by(endpoint: &Address) -> Option<Taken> {
    let at = |address: SocketAddr| ports::is_taken(address).then(|| Taken::by(ports::listener(address)));
    match endpoint {
        Address::Socket(address) => at(*address),
        Address::Name(host, port) => (host.as_str(), *port).to_socket_addrs().ok()?.find_map(at),
        Address::Unix(path) => UnixStream::connect(path).is_ok().then(|| Taken::by(ports::listener_at(path))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_in_use_names_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let by = taken_by(&endpoint).unwrap().to_string();
        assert!(by.contains(&format!("(pid {})", std::process::id())), "{by}");
        drop(listener);
        assert!(taken_by(&endpoint).is_none());
    }
}
