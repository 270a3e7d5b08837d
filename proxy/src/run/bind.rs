//! Everything that is needed before the first request: listening sockets, admin socket, state file, signals.

use std::io;
use std::net::{SocketAddr, TcpListener};

use signal_hook::iterator::Signals;

use super::{RunError, signals, system};
use crate::admin::socket::{Access, AdminSocket};
use crate::config::Server;
use crate::front::listener::{self, Holder, Listener, Speaks};
use crate::handover::parent::Parent;
use crate::keeper::{KeeperSockets, KeeperWatch};
use crate::state::store::Store;
use crate::systemd::{Inherited, InheritedError};

/// What has been bound. If one of them isn't available, uh-proxy doesn't start.
pub(super) struct Bound {
    pub(super) listeners: Vec<Listener>,
    pub(super) metrics: Option<Listener>,
    pub(super) keeper: Option<KeeperWatch>,
    /// `None`: another process has it still.
    pub(super) admin: Option<AdminSocket>,
    pub(super) store: Store,
    pub(super) signals: Signals,
}

/// Binds all of it, except what belongs to the process that leads if there is one (`joins`).
pub(super) fn bind(
    server: &Server,
    inherited: Inherited,
    parent: Option<&mut Parent>,
    joins: bool,
) -> Result<Bound, RunError> {
    let http = server.listen.iter().map(|address| (*address, "server.listen", Speaks::Http));
    let https = server.listen_tls.iter().map(|address| (*address, "server.listen_tls", Speaks::Https));
    let h2c = server.listen_h2c.iter().map(|address| (*address, "server.listen_h2c", Speaks::Http2));
    let wanted: Vec<_> = http.chain(https).chain(h2c).collect();
    let addresses: Vec<SocketAddr> =
        wanted.iter().map(|(address, ..)| *address).chain(server.metrics).collect();
    let keeper = server.keeper.as_ref().map(|path| KeeperSockets::get(path, &addresses)).transpose()?;
    let mut sources = Sources { inherited, parent, keeper };
    let listeners: Vec<Listener> = wanted
        .into_iter()
        .map(|(address, key, speaks)| sources.listen(address, key, speaks, ForClients::Yes))
        .collect::<Result<_, _>>()?;
    let metrics = server
        .metrics
        .map(|address| sources.listen(address, "server.metrics", Speaks::Http, ForClients::No))
        .transpose()?;
    sources.inherited.finish()?;
    if let Some(address) = sources.parent.and_then(Parent::finish) {
        return Err(InheritedError::NotConfigured { address }.into());
    }
    let keeper = sources.keeper.map(KeeperSockets::finish);
    let signals = Signals::new(signals::HANDLED).map_err(system("handle signals"))?;
    let (admin, store) = if joins {
        (None, Store::of_another(&server.state_file))
    } else {
        (Some(AdminSocket::bind(&server.admin_socket, access(server))?), Store::open(&server.state_file)?)
    };
    Ok(Bound { listeners, metrics, keeper, admin, store, signals })
}

/// Who may use the admin socket.
pub(super) fn access(server: &Server) -> Access {
    if server.admin_users.is_empty() { Access::Owner } else { Access::Listed }
}

/// Whether an address is for clients. One for metrics may be bound here although there is a keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ForClients {
    Yes,
    No,
}

/// Where listening sockets come from, in this order: systemd, the uh-proxy that has started this one, the keeper, our own.
struct Sources<'a> {
    inherited: Inherited,
    parent: Option<&'a mut Parent>,
    keeper: Option<KeeperSockets>,
}

impl Sources<'_> {
    fn listen(
        &mut self,
        address: SocketAddr,
        key: &'static str,
        speaks: Speaks,
        for_clients: ForClients,
    ) -> Result<Listener, RunError> {
        let (socket, holder) = self.socket(address, key, for_clients)?;
        Ok(Listener { socket, holder, speaks, key, configured: address })
    }

    fn socket(
        &mut self,
        address: SocketAddr,
        key: &'static str,
        for_clients: ForClients,
    ) -> Result<(TcpListener, Holder), RunError> {
        if let Some(socket) = self.inherited.claim(address) {
            return Ok((socket, Holder::ServiceManager));
        }
        if let Some(claimed) = self.parent.as_mut().and_then(|parent| parent.claim(address, key)) {
            return Ok(claimed);
        }
        let unusable = |source| RunError::Bind { address: address.to_string(), key, source };
        if let Some(keeper) = &mut self.keeper {
            if let Some((socket, renewals)) = keeper.claim(address).map_err(unusable)? {
                socket.set_nonblocking(true).map_err(unusable)?;
                return Ok((socket, Holder::Keeper(renewals)));
            }
            if for_clients == ForClients::Yes {
                return Err(keeper.not_held(address, key).into());
            }
        }
        Ok((listener::bind(address).map_err(unusable)?, Holder::Us))
    }
}

/// The addresses of the listeners that speak this.
pub(super) fn addresses(listeners: &[Listener], speaks: Speaks) -> Result<Vec<String>, RunError> {
    let address = |listener: &Listener| listener.socket.local_addr().map(|address| address.to_string());
    listeners
        .iter()
        .filter(|listener| listener.speaks == speaks)
        .map(address)
        .collect::<io::Result<_>>()
        .map_err(system("read the bound addresses"))
}
