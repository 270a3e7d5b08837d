//! Reads `[server.headers]`: headers that uh-proxy sends to the app, and client headers that it forwards.

use uh_http1::policy::{HeaderPolicy, ServerField, Traceparent, Underscores};
use uh_settings::Section;

pub(super) fn headers(server: &mut Section) -> HeaderPolicy {
    let trusted_proxies = server.list("trusted_proxies").unwrap_or_default();
    let mut section = server.section("headers");
    HeaderPolicy {
        trusted_proxies,
        forwarded: section.boolean("forwarded", false),
        via: section.boolean("via", false),
        request_start: section.boolean("request_start", false),
        traceparent: section.choice(
            "traceparent",
            Traceparent::Pass,
            &[("pass", Traceparent::Pass), ("make", Traceparent::Make)],
        ),
        underscores: section.choice(
            "underscores",
            Underscores::Drop,
            &[("drop", Underscores::Drop), ("pass", Underscores::Pass), ("refuse", Underscores::Refuse)],
        ),
        server: section.choice(
            "server",
            ServerField::Pass,
            &[("pass", ServerField::Pass), ("drop", ServerField::Drop)],
        ),
    }
}
