//! What `validate` says of an image that isn't on this host, with a scripted engine in place of dockerd.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};

use crate::harness::{Ran, Stage};

/// An engine without images. Of all images, its registry has only `there/…`.
fn engine() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let (status, body) = if path.ends_with("/version") {
                ("200 OK", r#"{"Version":"27.0.0","ApiVersion":"1.44","MinAPIVersion":"1.24"}"#)
            } else if path.contains("/images/") {
                ("404 Not Found", r#"{"message":"No such image"}"#)
            } else if path.contains("/distribution/there") {
                ("200 OK", r#"{"Descriptor":{"mediaType":"m","digest":"sha256:1","size":1},"Platforms":[]}"#)
            } else if path.contains("/distribution/") {
                ("404 Not Found", r#"{"message":"manifest unknown"}"#)
            } else {
                ("200 OK", "[]")
            };
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
                 Connection: close\r\n\r\n{body}"
            );
        }
    });
    address
}

fn validate(stage: &Stage, image: &str, engine: SocketAddr) -> Ran {
    let process = std::fs::read_to_string(stage.path("uh-deploy.toml")).unwrap();
    let (before, _) = process.split_once("[runtime.process]").unwrap();
    let text = format!("{before}[runtime]\nkind = \"docker\"\n[runtime.docker]\nimage = {image:?}\n");
    std::fs::write(stage.path("docker.toml"), text).unwrap();
    let mut command = stage.command_with("docker.toml", &["validate"]);
    Ran::of(command.env("DOCKER_HOST", format!("tcp://{engine}")).output().unwrap())
}

#[test]
fn an_image_no_registry_has_is_a_failed_check() {
    let stage = Stage::new();
    let engine = engine();
    let line = |ran: &Ran| {
        let line = ran.text.lines().find(|line| line.contains("Image available"));
        line.unwrap_or_else(|| panic!("{}", ran.text)).to_owned()
    };
    let ran = validate(&stage, "gone/app:1", engine);
    let said = line(&ran);
    assert!(ran.code == Some(1) && said.starts_with('✗'), "{}", ran.text);
    assert!(said.contains("gone/app:1") && said.contains("can't be pulled"), "{said}");
    assert!(said.contains("manifest unknown"), "{said}");
    let said = line(&validate(&stage, "there/app:1", engine));
    assert!(said.starts_with('✓') && said.contains("its registry has it"), "{said}");
}
