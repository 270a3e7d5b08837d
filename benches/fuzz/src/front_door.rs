//! The whole proxy inside this process, so that the fuzzer sees its coverage.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use uh_proxy::config;
use uh_proxy::run::{self, Start};
use uh_proxy::systemd::Inherited;

/// The timeout of everything that should happen immediately.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct FrontDoor {
    pub(crate) address: SocketAddr,
    pub(crate) admin_socket: PathBuf,
    _directory: TempDir,
}

/// Starts uh-proxy in front of these backends. It runs as long as the process.
pub(crate) fn start(blue: SocketAddr, green: SocketAddr) -> FrontDoor {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let at = |name: &str| directory.path().join(name);
    let admin_socket = at("admin.sock");
    let address = free_address();
    let text = format!(
        "[server]\nlisten = [\"{address}\"]\nthreads = 1\nadmin_socket = {admin_socket:?}\nstate_file = {:?}\n\
         access_log = {{ path = \"/dev/null\", format = \"json\" }}\n\
         [services.app]\nactive = \"blue\"\n[services.app.health]\nenabled = false\n\
         [services.app.backends.blue]\nendpoints = [\"{blue}\"]\n\
         [services.app.backends.green]\nendpoints = [\"{green}\"]\n",
        at("state.json"),
    );
    let path = at("uh-proxy.toml");
    std::fs::write(&path, &text).expect("the configuration can be written");
    let config = config::parse(&text).expect("the configuration is good");
    let start = Start { path, text, config, inherited: Inherited::default() };
    std::thread::spawn(move || panic!("uh-proxy has ended: {:?}", run::run(start)));
    let deadline = Instant::now() + SOON;
    while std::net::TcpStream::connect(address).is_err() || !admin_socket.exists() {
        assert!(Instant::now() < deadline, "uh-proxy isn't listening");
        std::thread::sleep(Duration::from_millis(5));
    }
    FrontDoor { address, admin_socket, _directory: directory }
}

/// An address that isn't in use.
fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    listener.local_addr().expect("it has an address")
}
