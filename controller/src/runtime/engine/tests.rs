//! The engine with a fake that is slow or silent, and states read from what it reports.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

use super::*;
use crate::waiting::tests::kept;

/// An engine with one container, whose removal never completes.
fn engine_that_never_ends_a_removal() -> Docker {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let delete = lines.next().is_some_and(|line| line.starts_with("DELETE"));
            lines.find(String::is_empty);
            let (status, body) = match delete {
                true => ("409 Conflict", r#"{"message":"removal of container a is already in progress"}"#),
                false => ("200 OK", r#"[{"Id":"a"}]"#),
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close");
            let _ = write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    Docker::connect_with_http(&address, 10, bollard::API_DEFAULT_VERSION).unwrap()
}

#[tokio::test]
async fn a_removal_that_never_ends_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine {
        client: OnceCell::new_with(Some(engine_that_never_ends_a_removal())),
        owner: Owner::new(dir.path()),
        service: None,
        waiting: kept().0,
    };
    engine.owner.id_or_new().unwrap();
    let instance =
        InstanceId::new(&"app".parse().unwrap(), &"green".parse().unwrap(), "20261125t000001-aaaa");
    let removal = engine.remove_within(&instance, Duration::from_millis(500));
    let removed = tokio::time::timeout(Duration::from_secs(20), removal).await.unwrap();
    let said = crate::chain(&removed.unwrap_err());
    assert!(said.contains("can't remove app.green") && said.contains("already in progress"), "{said}");
}

/// An engine that accepts a connection and says nothing.
#[tokio::test]
async fn a_silent_engine_is_named_after_a_few_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let docker = Docker::connect_with_http(&address, 10, bollard::API_DEFAULT_VERSION).unwrap();
    let (waiting, lines) = kept();
    let client = OnceCell::new_with(Some(docker));
    let engine = Engine { client, owner: Owner::new(dir.path()), service: None, waiting };
    engine.owner.id_or_new().unwrap();
    let instance =
        InstanceId::new(&"app".parse().unwrap(), &"green".parse().unwrap(), "20261125t000001-aaaa");
    let state = engine.state(&instance);
    assert!(tokio::time::timeout(Duration::from_secs(5), state).await.is_err(), "it was answered");
    let said = lines.borrow().join("\n");
    assert!(said.starts_with("waiting for the Docker Engine to list containers (3s so far"), "{said}");
}

#[test]
fn a_container_that_waits_for_a_restart_counts_as_exited() {
    let container = |status, code, oom| ContainerInspectResponse {
        restart_count: Some(3),
        state: Some(ContainerState {
            status: Some(status),
            exit_code: Some(code),
            oom_killed: Some(oom),
            ..ContainerState::default()
        }),
        ..ContainerInspectResponse::default()
    };
    use ContainerStateStatusEnum as Status;
    assert_eq!(state_of(&container(Status::CREATED, 0, false)), State::Absent);
    assert_eq!(state_of(&container(Status::RUNNING, 0, false)), State::Running { restarts: 3 });
    let ended = |code, out_of_memory| State::Exited(Ending { code: Some(code), out_of_memory });
    assert_eq!(state_of(&container(Status::RESTARTING, 7, false)), ended(7, false));
    assert_eq!(state_of(&container(Status::EXITED, 137, true)), ended(137, true));
}
