//! What a client is recognised by while the traffic of its service is split: a cookie of its own, or else its address.
//!
//! A browser gets its cookie with the first page. It is drawn so that it is on the side where the address was: the client
//! stays there.

use uh_http1::request::RequestHead;
use uh_http1::response::ResponseHead;
use uh_switching::{Assigned, ClientKey};

use super::admission::ClientNetwork;
use super::client::Client;
use super::own_cookies::{self, OwnCookies};
use crate::config::Service;
use uh_http1::forwarded::Scheme;

/// The key of a request's client.
pub(super) fn key<L>(client: &Client<L>, request: &RequestHead, service: &Service) -> ClientKey {
    let cookies = request.cookie.of_head(client.request_head());
    if service.split.cookie
        && !cookies.is_empty()
        && let Some(id) = client.worker.cookies.read(cookies, own_cookies::CLIENT)
    {
        return ClientKey::Cookie(id);
    }
    match client.network(request) {
        ClientNetwork::V4(address) => ClientKey::V4(address),
        ClientNetwork::V6(network) => ClientKey::V6(network),
    }
}

/// The cookie that a client may get with the answer to its request.
#[derive(Clone, Copy)]
pub(crate) struct NewCookie<'a> {
    cookies: &'a OwnCookies,
    assigned: Assigned,
    secure: bool,
}

impl<'a> NewCookie<'a> {
    /// `None`: the client has one, gets none here, or its side isn't decided by one.
    pub(super) fn of(
        request: &RequestHead,
        assigned: Option<Assigned>,
        service: &Service,
        cookies: &'a OwnCookies,
    ) -> Option<Self> {
        let assigned = assigned?;
        let has_one = matches!(assigned.key, ClientKey::Cookie(_));
        let is_get = request.method.is_read() && !request.method.is_head();
        let may = service.split.cookie && is_get && !has_one;
        may.then_some(Self { cookies, assigned, secure: request.scheme == Scheme::Https })
    }

    /// Adds it to the complete head that begins at `start`, if the response is a page that no shared cache stores.
    pub(super) fn add(self, response: &ResponseHead, start: usize, head: &mut Vec<u8>) {
        let Self { cookies, assigned, secure } = self;
        if !response.is_page {
            return;
        }
        let fits = |id| assigned.by.side(ClientKey::Cookie(id)) == assigned.side;
        if let Some(id) = own_cookies::draw(fits) {
            cookies.set(own_cookies::CLIENT, id, secure, (head, start));
        }
    }
}
