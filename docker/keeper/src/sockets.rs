//! The sockets of a keeper: bound as soon as their addresses are free, or given back by the uh-proxy that holds them.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use uh_system::plain;

use crate::wire;

/// Connections that the kernel completes and keeps while no uh-proxy accepts them; the kernel lowers it to
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// An address to hold.
#[derive(Debug)]
struct Place {
    address: SocketAddr,
    /// Its socket, or why there is none yet.
    socket: Result<TcpListener, String>,
}

/// All sockets of a keeper.
#[derive(Debug)]
pub(crate) struct Sockets(Vec<Place>);

impl Sockets {
    /// For these addresses, none of which is bound yet.
    pub(crate) fn new(addresses: &[SocketAddr]) -> Self {
        let place =
            |address: &SocketAddr| Place { address: *address, socket: Err("not bound yet".to_owned()) };
        Self(addresses.iter().map(place).collect())
    }

    /// Binds what is missing. Addresses that another process has stay missing. Calls `report` with what is new.
    ///
    /// # Errors
    /// An address can never be bound, for example for lack of a privilege.
    pub(crate) fn bind_missing(&mut self, report: impl Fn(&str)) -> io::Result<()> {
        for place in self.0.iter_mut().filter(|place| place.socket.is_err()) {
            match listen_on(place.address) {
                Ok(socket) => {
                    // With port 0, it is another one than asked for.
                    let address = socket.local_addr()?;
                    report(&format!("holding {address}"));
                    place.socket = Ok(socket);
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    let reason = plain(&error);
                    if place.socket.as_ref().err() != Some(&reason) {
                        report(&format!(
                            "waiting for {}: {reason}; stop the process that has it. A uh-proxy that was given this socket gives it back",
                            place.address
                        ));
                    }
                    place.socket = Err(reason);
                }
                Err(error) => {
                    return Err(io::Error::new(
                        error.kind(),
                        format!("cannot listen on {}: {}", place.address, plain(&error)),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Takes over those of a caller's sockets that are missing here.
    pub(crate) fn adopt(&mut self, sockets: Vec<OwnedFd>, report: impl Fn(&str)) {
        for (address, socket) in sockets.into_iter().filter_map(|socket| wire::listening(socket).ok()) {
            let wanted = self.0.iter_mut().find(|place| place.address == address && place.socket.is_err());
            if let Some(place) = wanted {
                report(&format!("holding {address}, given back by uh-proxy"));
                place.socket = Ok(socket);
            }
        }
    }

    /// Whether an address has no socket yet.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.0.iter().any(|place| place.socket.is_err())
    }

    /// The sockets that there are.
    pub(crate) fn held(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().filter_map(|place| place.socket.as_ref().ok()).map(|socket| socket.as_fd()).collect()
    }

    /// The addresses without one, and why.
    pub(crate) fn missing(&self) -> impl Iterator<Item = (SocketAddr, &str)> {
        self.0.iter().filter_map(|place| Some((place.address, place.socket.as_ref().err()?.as_str())))
    }
}

/// A listening socket with the options that uh-proxy sets itself where it has no keeper.
fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // Connections of an earlier keeper in TIME_WAIT are no hindrance.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_address_is_missing_until_it_is_free_or_given_back() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let mut sockets = Sockets::new(&[address]);
        sockets.bind_missing(|_| ()).unwrap();
        assert_eq!(sockets.missing().collect::<Vec<_>>(), [(address, "Address already in use")]);
        sockets.adopt(vec![taken.try_clone().unwrap().into()], |_| ());
        assert!(!sockets.is_incomplete() && sockets.held().len() == 1);
        let mut others = Sockets::new(&[address]);
        others.bind_missing(|_| ()).unwrap();
        drop((taken, sockets));
        others.bind_missing(|_| ()).unwrap();
        assert!(!others.is_incomplete());
    }

    #[test]
    fn an_unwanted_socket_is_not_adopted() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sockets = Sockets::new(&["127.0.0.1:1".parse().unwrap()]);
        sockets.adopt(vec![other.into()], |_| ());
        assert!(sockets.held().is_empty());
    }

    #[test]
    fn an_address_of_another_machine_is_an_error() {
        let mut sockets = Sockets::new(&["192.0.2.1:80".parse().unwrap()]);
        let error = sockets.bind_missing(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with("cannot listen on 192.0.2.1:80: "), "{error}");
    }
}
