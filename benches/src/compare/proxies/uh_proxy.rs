//! uh-proxy: all features on, as in `config/uh-proxy.toml`, but for the access log's format: `combined`, as nginx's.

use std::fmt::Write as _;
use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{ProxyInputs, host, quoted};

pub(super) fn command(stage: &ProxyInputs<'_>) -> Result<Command> {
    let format = if stage.terms.access_log { "combined" } else { "off" };
    let listen = match (stage.pair(), stage.clear_http2()) {
        (Some(_), _) => "listen = []\nlisten_tls",
        (None, true) => "listen = []\nlisten_h2c",
        (None, false) => "listen",
    };
    let mut text = format!(
        "[server]\n{listen} = [\"{}\"]\nmetrics = \"127.0.0.1:0\"\nthreads = {}\nadmin_socket = {}\nstate_file = {}\n\
         access_log = {{ path = {}, format = \"{format}\" }}\n",
        stage.listen,
        stage.workers(),
        quoted(stage.file("run/admin.sock")),
        quoted(stage.file("state/.deployment-state.json")),
        quoted(stage.file("access.log")),
    );
    if let Some(pair) = stage.pair() {
        let (certificate, key) = (pair.certificate.display(), pair.key.display());
        writeln!(
            text,
            "[server.tls]\ncertificates = [{{ cert = {}, key = {} }}]",
            quoted(certificate.to_string()),
            quoted(key.to_string())
        )?;
    }
    // One client with thousands of connections, each with more requests than are usually allowed.
    text.push_str("[server.limits]\nrequests_per_connection = 1000000000\nconnections_per_address = 0\n");
    std::fs::create_dir_all(stage.dir.join("state"))?;
    for (service, [blue, green]) in stage.terms.services.iter().enumerate() {
        write!(
            text,
            "[services.s{service}]\nhosts = [\"{}\"]\nactive = \"blue\"\n\
             [services.s{service}.health]\npath = \"/1\"\nhealthy_after = 1\ninterval = \"{}s\"\n\
             [services.s{service}.backends.blue]\nendpoints = [\"{blue}\"]\n\
             [services.s{service}.backends.green]\nendpoints = [\"{green}\"]\n",
            host(service),
            // Two probes a second, however many services there are: the others probe nobody.
            stage.terms.services.len()
        )?;
    }
    let config = stage.write("uh-proxy.toml", &text)?;
    let mut command = Command::new(stage.program);
    command.arg("run").arg("--config").arg(config);
    Ok(command)
}

/// One call over the admin socket; it replies when the state is on disk.
pub(super) fn switch(stage: &ProxyInputs<'_>, to: usize) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let body = format!("{{\"to\":\"{}\"}}", ["blue", "green"][to]);
    let mut socket = UnixStream::connect(stage.dir.join("run/admin.sock"))?;
    let request = format!(
        "POST /v1/services/s0/switch HTTP/1.1\r\nHost: uh\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes())?;
    let mut reply = String::new();
    socket.read_to_string(&mut reply)?;
    ensure!(reply.starts_with("HTTP/1.1 200 "), "refused: {reply}");
    Ok(())
}
