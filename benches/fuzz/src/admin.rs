//! Raw calls of the admin socket of the whole proxy.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use crate::files::properties::of_answer;
use crate::front_door::{self, FrontDoor, SOON};
use crate::target::Target;
use crate::words::{CALL_WORDS, CALLS, call, with_right_length};

pub(crate) const TARGET: Target = Target { name: "admin", check, seeds, words: &[CALL_WORDS] };

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
    calls(bytes)?;
    with_right_length(bytes).map_or(Ok(()), |right| calls(&right))
}

fn calls(bytes: &[u8]) -> Result<(), String> {
    static FRONT_DOOR: OnceLock<FrontDoor> = OnceLock::new();
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 9));
    let front_door = FRONT_DOOR.get_or_init(|| front_door::start(nobody, nobody));
    let mut stream =
        UnixStream::connect(&front_door.admin_socket).map_err(|e| format!("no connection: {e}"))?;
    stream.set_read_timeout(Some(SOON)).map_err(|e| e.to_string())?;
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut reply = Vec::new();
    if stream.read_to_end(&mut reply).is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
        return Err("it neither responds nor closes".to_owned());
    }
    of_answer(&reply)
}
