//! Raw calls of the admin socket of the whole proxy.

use std::sync::OnceLock;

use uh_testkit::fuzz::calls::{CALLS, ask, call};
use uh_testkit::fuzz::words::{CALL_WORDS, JSON_WORDS};

use crate::front_door::{self, FrontDoor};
use crate::target::Target;

pub(crate) const TARGET: Target = Target { name: "admin", check, seeds, words: &[JSON_WORDS, CALL_WORDS] };

fn seeds() -> Vec<Vec<u8>> {
    let more = [
        (
            "PUT /v1/services/app/backends/green",
            r#"{"endpoints":["unix:/x","[::1]:80","a.b:1"],"force":true,"expect_generation":1}"#,
        ),
        ("POST /v1/services/app/maintenance", r#"{"on":false}"#),
        ("POST /v1/services/app/switch", r#"{"to":"green","force":true,"expect_generation":0}"#),
        ("POST /v1/services/app/backends/green/drain", r#"{"timeout_ms":1,"cut":true}"#),
        ("DELETE /v1/reload", ""),
        ("GET /v1/services", ""),
    ];
    CALLS.iter().chain(&more).map(|(line, body)| call(line, body).into_bytes()).collect()
}

fn check(bytes: &[u8]) -> Result<(), String> {
    static FRONT_DOOR: OnceLock<FrontDoor> = OnceLock::new();
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 9));
    ask(&FRONT_DOOR.get_or_init(|| front_door::start(nobody, nobody)).admin_socket, bytes)
}
