//! Bodies that are written to files: nothing is left of them, and a disk that is full or gone costs no request.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{length, ok, patterned, post};
use crate::harness::{Home, Proxy, until};
use crate::recorder::{End, OK, Recorder};
use crate::wire::Wire;

/// Bodies of more than 16 KiB are in files.
const FILES: &str = "buffer_requests = { max_bytes = \"4MiB\", memory_bytes = \"16KiB\" }";

fn directory_of(path: &Path) -> String {
    format!("directory = {path:?}")
}

async fn home(buffers: &str) -> (Home, Recorder) {
    let app = Recorder::start(|_| (OK.to_vec(), End::Keep)).await;
    let home = Home::new(app.address, "127.0.0.1:9")
        .server(&format!("request_buffers = {{ {buffers} }}"))
        .service(FILES);
    (home, app)
}

/// The files without a name that a process has open.
fn unnamed(proxy: &Proxy) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap();
    let is_deleted = |target: &Path| target.to_string_lossy().ends_with(" (deleted)");
    descriptors
        .filter(|fd| fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| is_deleted(&to)))
        .count()
}

async fn until_nothing_is_left(proxy: &Proxy, directory: &Path) {
    proxy.until_counted("uh_proxy_request_buffer_bytes{place=\"disk\"} 0").await;
    proxy.until_counted("uh_proxy_request_buffer_bytes{place=\"memory\"} 0").await;
    until("all files are closed", async || (unnamed(proxy) == 0).then_some(())).await;
    assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
}

#[tokio::test]
async fn a_body_is_in_a_file_without_a_name_until_the_app_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let (home, app) = home(&directory_of(directory.path())).await;
    let proxy = home.start().await;
    let body = patterned(1_500_000);
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(post("/", &length(body.len()))).await;
    wire.send(&body[..1_000_000]).await;
    until("it is in a file", async || (unnamed(&proxy) == 1).then_some(())).await;
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    assert!(app.take().is_empty());
    wire.send(&body[1_000_000..]).await;
    ok(&mut wire).await;
    assert_eq!(app.take().remove(0).body, body);
    proxy.until_counted("result=\"file\"} 1").await;
    until_nothing_is_left(&proxy, directory.path()).await;
}

#[tokio::test]
async fn clients_that_leave_take_their_files_with_them() {
    let directory = tempfile::tempdir().unwrap();
    let (home, app) = home(&directory_of(directory.path())).await;
    let proxy = home.start().await;
    let body = patterned(300_000);
    for bytes in (10_000..body.len()).step_by(10_000) {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(post("/", &length(body.len()))).await;
        wire.send(&body[..bytes]).await;
    }
    until("all are logged", async || (home.access_log().len() == 29).then_some(())).await;
    until_nothing_is_left(&proxy, directory.path()).await;
    assert!(app.take().is_empty());
}

#[tokio::test]
async fn the_disk_of_all_is_bounded_and_what_does_not_fit_is_streamed() {
    let directory = tempfile::tempdir().unwrap();
    let (home, app) = home(&format!("{}, disk_bytes = \"100KiB\"", directory_of(directory.path()))).await;
    let proxy = home.start().await;
    let body = patterned(400_000);
    let mut wire = Wire::connect(proxy.address).await;
    for _ in 0..3 {
        wire.send(post("/", &length(body.len()))).await;
        wire.send(&body).await;
        ok(&mut wire).await;
        assert_eq!(app.take().remove(0).body, body);
    }
    proxy.until_counted("result=\"disk_full\"} 3").await;
    until_nothing_is_left(&proxy, directory.path()).await;
}

/// uh-proxy with a disk of its own, of 256 KiB, at this directory; `None`: that isn't permitted here.
async fn with_small_disk(home: &Home, directory: &Path) -> Option<Proxy> {
    if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success()) {
        println!("skipped: unshare --mount is not permitted here");
        return None;
    }
    drop(home.command());
    let script =
        "mount -t tmpfs -o size=256k,mode=0755 tmpfs \"$1\" || exit 77; exec \"$2\" run --config \"$3\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "sh", "-c", script, "sh"]).arg(directory);
    command.arg(env!("CARGO_BIN_EXE_uh-proxy")).arg(home.config_file());
    command.stdout(Stdio::null()).stderr(fs::File::create(home.log()).unwrap());
    Some(home.start_as(command).await)
}

#[tokio::test]
async fn a_disk_that_fills_costs_no_request_and_keeps_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (home, app) = home(&directory_of(directory.path())).await;
    let Some(proxy) = with_small_disk(&home, directory.path()).await else { return };
    let inside = format!("/proc/{}/root{}", proxy.pid(), directory.path().display());
    let body = patterned(700_000);
    let mut wire = Wire::connect(proxy.address).await;
    for _ in 0..5 {
        wire.send(post("/", &length(body.len()))).await;
        wire.send(&body).await;
        ok(&mut wire).await;
        assert!(app.take().remove(0).body == body, "the body isn't whole");
    }
    // One that fits is still buffered.
    wire.send(post("/", &length(100_000))).await;
    wire.send(&body[..100_000]).await;
    ok(&mut wire).await;
    proxy.until_counted("result=\"disk_error\"} 5").await;
    proxy.until_counted("result=\"file\"} 1").await;
    until_nothing_is_left(&proxy, Path::new(&inside)).await;
    home.until_said("the request is streamed to the app instead").await;
    assert!(home.messages().contains("No space left on device"), "{}", home.messages());
}

#[tokio::test]
async fn a_directory_that_is_gone_costs_no_request() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("buffers");
    fs::create_dir(&directory).unwrap();
    let (home, app) = home(&directory_of(&directory)).await;
    let proxy = home.start().await;
    fs::remove_dir(&directory).unwrap();
    let body = patterned(50_000);
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(post("/", &length(body.len()))).await;
    wire.send(&body).await;
    ok(&mut wire).await;
    assert_eq!(app.take().remove(0).body, body);
    home.until_said("the request is streamed to the app instead").await;
}

#[tokio::test]
async fn a_directory_in_which_no_file_can_be_created_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    for path in [file.clone(), parent.path().join("missing")] {
        let (home, _app) = home(&directory_of(&path)).await;
        home.write_config(&home.config());
        let config = home.config_file();
        let (code, said, error) =
            crate::harness::cli(&home.socket(), &["check", "--config", config.to_str().unwrap()]).await;
        assert!(
            code != 0 && format!("{said}{error}").contains("server.request_buffers.directory"),
            "{said}{error}"
        );
    }
}
