//! Which backend of its service a request goes to: the active one, that of a split, that of a preview, or the one before.

use super::client::Client;
use super::{Lease, Named, split};
use crate::config::DeploymentIds;
use uh_http1::field::values;
use uh_http1::request::RequestHead;
use uh_switching::{Assigned, Health};

/// The field of a request that names the deployment id of the page that sends it.
const ID_FIELD: &[u8] = b"x-deployment-id";

/// The same as a parameter of the query, for what a page loads by its URL.
const ID_PARAMETER: &[u8] = b"dpl=";

/// A lease for a request: on the active backend of its service, or where a split sends the client.
pub(super) fn pick<L>(client: &Client<L>, request: &RequestHead) -> Option<(Lease, Option<Assigned>)> {
    let head = client.scratch.as_ref()?.request_head();
    let (host, path) = (request.host.of_head(head), request.path.of_head(head));
    client.worker.board.pick(host, path, client.worker.index, |service| split::key(client, request, service))
}

/// A lease on the active backend, for a request that has failed on the new side of a split: that of `lease`.
pub(super) fn pick_old_side<L>(client: &Client<L>, request: &RequestHead, lease: &Lease) -> Option<Lease> {
    let (worker, head) = (&client.worker, client.request_head());
    let (host, path) = (request.host.of_head(head), request.path.of_head(head));
    let active = worker.board.pick_active(host, path, worker.index)?;
    // The split may have ended with a switch to its backend.
    let is_other = active.owner().backend.name() != lease.owner().backend.name();
    is_other.then_some(active)
}

/// A lease on the backend that was active before that of `lease`, if it may be asked now; for the new side of a split, on
/// the active one.
pub(super) fn pick_previous<L>(client: &Client<L>, request: &RequestHead, lease: &Lease) -> Option<Lease> {
    let (worker, head) = (&client.worker, client.request_head());
    let (host, path) = (request.host.of_head(head), request.path.of_head(head));
    let previous = worker.board.pick_previous(host, path, worker.index, lease.owner().backend.name())?;
    let backend = &previous.owner().backend;
    // After a switch in between, the lease may be on the previous one.
    let is_that_one = backend.name() == lease.owner().backend.name();
    (!is_that_one && worker.board.health(backend) != Health::Unhealthy).then_some(previous)
}

/// A lease on the backend that a preview's token names.
pub(super) fn pick_preview<L>(client: &Client<L>, request: &RequestHead, backend: &str) -> Named {
    let (worker, head) = (&client.worker, client.request_head());
    let (host, path) = (request.host.of_head(head), request.path.of_head(head));
    worker.board.pick_named(host, path, worker.index, backend)
}

/// The same as [`pick_previous`], if the request names that backend's deployment id and not that of the lease's.
pub(super) fn pick_named<L>(
    client: &Client<L>,
    request: &RequestHead,
    lease: &Lease,
    ids: &DeploymentIds,
) -> Option<Lease> {
    let head = client.request_head();
    let id = deployment_id(head, request.path.of_head(head))?;
    let is_named =
        |lease: &Lease| lease.owner().backend.version().is_some_and(|version| ids.is_of(id, version));
    if is_named(lease) {
        return None;
    }
    pick_previous(client, request, lease).filter(is_named)
}

/// The deployment id that a request names. `path` may have a query.
fn deployment_id<'a>(head: &'a [u8], path: &'a [u8]) -> Option<&'a [u8]> {
    let query = || {
        let query = &path[memchr::memchr(b'?', path)? + 1..];
        query.split(|&b| b == b'&').find_map(|parameter| parameter.strip_prefix(ID_PARAMETER))
    };
    values(head, ID_FIELD).next().or_else(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_its_deployment_by_field_or_parameter() {
        for (path, fields, id) in [
            ("/a", "", None),
            ("/a?dpl=1", "", Some("1")),
            ("/a?x=1&dpl=1-2", "", Some("1-2")),
            ("/a?dpl=1&dpl=2&y", "", Some("1")),
            ("/a?dpl=", "", Some("")),
            ("/a?xdpl=1", "", None),
            ("/dpl=1", "", None),
            ("/a", "X-Deployment-Id:  7 \r\n", Some("7")),
            ("/a?dpl=1", "x-deployment-id: 7\r\n", Some("7")),
            ("/a", "x-deployment-ids: 7\r\n", None),
        ] {
            let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            let found = deployment_id(head.as_bytes(), path.as_bytes());
            assert_eq!(found, id.map(str::as_bytes), "{path} {fields}");
        }
    }
}
