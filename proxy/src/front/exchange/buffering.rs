//! A request that is buffered before a backend is asked. Meanwhile it holds no lease: it isn't in flight anywhere, a switch
//! or a drain doesn't wait for it, and the backend that is active in the end gets it.

use std::sync::LazyLock;

use tokio::time::Instant;

use super::Exchange;
use super::course::{self, Course, OwnAnswer};
use crate::config::RequestBuffer;
use crate::front::Lease;
use crate::front::applied::Applied;
use crate::front::client::ClientLink;
use crate::front::request_buffer::{BufferedBody, Decision, collect, decide};
use uh_http1::edits::{Edit, FieldEdits, Names};
use uh_switching::Assigned;

/// A body that has arrived needs no `100 Continue`.
static NO_EXPECT: LazyLock<FieldEdits> =
    LazyLock::new(|| FieldEdits::new([("Expect", &Edit::Remove)], Names::Exact));

impl<L: ClientLink> Exchange<'_, L> {
    /// Reads the request's body, if it is to be buffered, and decides again who answers. The lease is dropped meanwhile.
    pub(super) async fn buffer_first(
        &mut self,
        rules: RequestBuffer,
        (lease, assigned): (Lease, Option<Assigned>),
        applied: Applied,
        health_in_maintenance: bool,
    ) -> Course {
        let meters = |lease: &Lease, result| lease.owner().meters.lane(lease.worker()).buffered(result);
        let limits = &applied.settings(&lease).limits;
        match decide(rules, limits, self.request, self.client.request_head()) {
            Decision::Buffer => {}
            Decision::No => return Course::Backend { lease, assigned, applied, health_in_maintenance },
            Decision::Stream(result) => {
                meters(&lease, result);
                return Course::Backend { lease, assigned, applied, health_in_maintenance };
            }
        }
        let applied = applied.without_lease(&lease);
        drop(lease);
        // There always are some.
        let Some(settings) = applied.any_settings(None) else {
            return course::decide(self.client, self.request, self.record.started.into_std());
        };
        let (body, result) = match collect(self.client, self.request, settings, rules).await {
            Ok(collected) => collected,
            Err(failure) => {
                return Course::Own { applied, answer: OwnAnswer::NotBuffered(failure.refusal()) };
            }
        };
        self.rewrite_head(&body);
        self.buffered = Some(Box::new(body));
        self.record.asked = Instant::now();
        let course = course::again(self.client, self.request, applied, self.record.asked.into_std());
        if let Course::Backend { lease, .. } = &course {
            meters(lease, result);
        }
        course
    }

    /// The backend's head says what is now known of the body.
    fn rewrite_head(&mut self, body: &BufferedBody) {
        let Some(scratch) = &mut self.client.scratch else { return };
        if std::mem::take(&mut self.request.expects_continue) {
            NO_EXPECT.apply(scratch.upstream(), 0);
        }
        if let Some(length) = body.length() {
            let length = Edit::Set(length.to_string());
            let edits = [
                ("Transfer-Encoding", &Edit::Remove),
                ("Trailer", &Edit::Remove),
                ("Content-Length", &length),
            ];
            FieldEdits::new(edits, Names::Exact).apply(scratch.upstream(), 0);
        }
    }
}
