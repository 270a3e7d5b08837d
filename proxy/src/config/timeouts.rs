//! `timeouts`, of a service and of some of its paths.

use std::time::Duration;

use uh_settings::Section;
use uh_settings::units::{DAY, MS, SECOND};

/// Timeouts of the parts of an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For one connection attempt to an endpoint.
    pub connect: Duration,
    /// Without any byte moving, while waiting for the backend.
    pub read: Duration,
    /// Without the backend accepting a byte of the request.
    pub write: Duration,
    /// How long an exchange may continue without a byte moving after its client has closed its sending side; `None`: no
    /// limit.
    pub half_closed: Option<Duration>,
    /// How long an exchange may wait for a response head before it counts as overdue; `None`: never.
    pub overdue: Option<Duration>,
    /// How long an upstream connection is kept for the next exchange. Shorter than Node's keep-alive of 5 s, so that
    /// uh-proxy closes first.
    pub idle: Duration,
    /// Without any byte moving, while waiting for the client to send its body or read the response.
    pub client: Duration,
    /// Without any byte moving in a tunnel.
    pub tunnel_idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: 2 * SECOND,
            read: 60 * SECOND,
            write: 60 * SECOND,
            half_closed: Some(3 * SECOND),
            overdue: Some(30 * SECOND),
            idle: 4 * SECOND,
            client: 60 * SECOND,
            tunnel_idle: 3600 * SECOND,
        }
    }
}

/// Of a service.
pub(super) fn of_service(section: &mut Section) -> Timeouts {
    let default = Timeouts::default();
    let connect = section.duration("connect", default.connect, (MS, DAY));
    let idle = section.duration("idle", default.idle, (Duration::ZERO, DAY));
    Timeouts { connect, idle, ..of_paths(section, &default) }
}

/// Of some paths: where they say nothing, as the service does. Connections are shared by all paths, so what concerns
/// those belongs to the service.
pub(super) fn of_paths(section: &mut Section, service: &Timeouts) -> Timeouts {
    Timeouts {
        connect: service.connect,
        read: section.duration("read", service.read, (MS, DAY)),
        write: section.duration("write", service.write, (MS, DAY)),
        half_closed: section.duration_or_off("half_closed", service.half_closed, (MS, DAY)),
        overdue: section.duration_or_off("overdue", service.overdue, (MS, DAY)),
        idle: service.idle,
        client: section.duration("client", service.client, (MS, DAY)),
        tunnel_idle: section.duration("tunnel_idle", service.tunnel_idle, (MS, 7 * DAY)),
    }
}
