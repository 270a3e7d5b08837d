//! Which rule a request gets. What is special about a rule is its body limit.

use super::{echo, with_rules};
use crate::wire::Wire;

const RULES: &str = "\
[[paths]]
match = \"/api\"
limits = { body_bytes = \"1B\" }
[[paths]]
match = \"/api/upload\"
limits = { body_bytes = \"3B\" }
[[paths]]
match = [\"/api/upload\", \"/api/other\"]
exact = true
limits = { body_bytes = \"2B\" }
[[paths]]
suffixes = [\".js\"]
limits = { body_bytes = \"4B\" }
";

/// The largest body that a path takes, of those that the rules name; 9: any.
async fn most(wire: &mut Wire, path: &str) -> usize {
    for length in [1, 2, 3, 4] {
        let body = "x".repeat(length + 1);
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
        wire.send(format!("{head}{body}")).await;
        if wire.response().await.status == 413 {
            return length;
        }
    }
    9
}

#[tokio::test]
async fn the_most_specific_rule_applies() {
    let app = echo().await;
    let (_home, proxy) = with_rules(&app, RULES).await;
    for (path, expected) in [
        ("/", 9),
        ("/api", 1),
        ("/api/x?upload", 1),
        ("/api/x.js", 1),
        ("/apix", 9),
        ("/api/upload", 2),
        ("/api/upload?a", 2),
        ("/api/other", 2),
        ("/api/other/x", 1),
        ("/api/upload/x", 3),
        ("/x.JS", 4),
        ("/api/upload/../x", 1),
        ("/api/%2e%2e/x", 9),
        ("/api/../x.js", 4),
        ("/%61pi/x", 9),
    ] {
        let mut wire = Wire::connect(proxy.address).await;
        assert_eq!(most(&mut wire, path).await, expected, "{path}");
    }
}
