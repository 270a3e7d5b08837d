//! The whole proxy inside this process, so that the fuzzer sees its coverage.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use tempfile::TempDir;
use uh_proxy::config;
use uh_proxy::run::{self, Start, TakeOver};
use uh_proxy::systemd::Inherited;
use uh_testkit::uh_proxy::Setup;
use uh_testkit::wait::{free_address, until_blocking};

pub(crate) struct FrontDoor {
    pub(crate) address: SocketAddr,
    pub(crate) admin_socket: PathBuf,
    _directory: TempDir,
}

/// Starts uh-proxy in front of these backends. It runs as long as the process.
pub(crate) fn start(blue: SocketAddr, green: SocketAddr) -> FrontDoor {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let address = free_address();
    let server = format!(
        "listen = [\"{address}\"]\nthreads = 1\naccess_log = {{ path = \"/dev/null\", format = \"json\" }}"
    );
    let setup = Setup::new(directory.path(), blue, green).server(&server);
    let setup = setup.service("[services.app.health]\nenabled = false");
    let (path, text, admin_socket) = (setup.config_file(), setup.config(), setup.socket());
    std::fs::write(&path, &text).expect("the configuration can be written");
    let config = config::parse(&text).expect("the configuration is good");
    let (inherited, take_over) = (Inherited::default(), TakeOver::Never);
    let program = "uh-proxy".into();
    let start = Start { path, text, config, inherited, take_over, program };
    std::thread::spawn(move || panic!("uh-proxy has ended: {:?}", run::run(start, None)));
    let listens = || (TcpStream::connect(address).is_ok() && admin_socket.exists()).then_some(());
    until_blocking("uh-proxy listens", listens).expect("it starts");
    FrontDoor { address, admin_socket, _directory: directory }
}
