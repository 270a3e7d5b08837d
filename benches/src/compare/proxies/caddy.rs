//! Caddy; a switch is a PATCH of its configuration over the admin API.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{ProxyInputs, host};

pub(super) fn command(stage: &ProxyInputs<'_>) -> Result<Command> {
    let route = |(service, backends): (usize, &[std::net::SocketAddr; 2])| {
        json!({
            "match": [{ "host": [host(service)] }],
            "handle": [{
                "@id": format!("s{service}"),
                "handler": "reverse_proxy",
                "upstreams": [{ "dial": backends[0].to_string() }],
                "transport": { "protocol": "http", "keep_alive": { "max_idle_conns_per_host": 512 } },
            }],
        })
    };
    let routes: Vec<Value> = stage.terms.services.iter().enumerate().map(route).collect();
    let mut server = json!({
        "listen": [stage.listen.to_string()],
        "automatic_https": { "disable": true },
        "protocols": match (stage.pair(), stage.clear_http2()) {
            (Some(_), _) => json!(["h1", "h2"]),
            (None, true) => json!(["h1", "h2c"]),
            (None, false) => json!(["h1"]),
        },
        "routes": routes,
    });
    let mut apps = json!({});
    if let Some(pair) = stage.pair() {
        server["tls_connection_policies"] = json!([{}]);
        apps["tls"] = json!({ "certificates": { "load_files": [
            { "certificate": pair.certificate, "key": pair.key },
        ] } });
    }
    if stage.terms.access_log {
        server["logs"] = json!({ "default_logger_name": "access" });
    }
    apps["http"] = json!({ "servers": { "front": server } });
    let config = json!({
        "admin": { "listen": stage.admin.to_string() },
        "logging": { "logs": {
            "default": { "level": "WARN", "exclude": ["http.log.access"] },
            "access": {
                "include": ["http.log.access.access"],
                "writer": { "output": "file", "filename": stage.file("access.log"), "roll": false },
            },
        } },
        "apps": apps,
    });
    let config = stage.write("caddy.json", &config.to_string())?;
    let mut command = Command::new(stage.program);
    command.arg("run").arg("--config").arg(config);
    // Its state goes nowhere but here.
    command.env("GOMAXPROCS", stage.workers().to_string()).env("HOME", stage.dir);
    command.env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME");
    Ok(command)
}

pub(super) fn switch(stage: &ProxyInputs<'_>, to: usize) -> Result<()> {
    let body = json!([{ "dial": stage.terms.services[0][to].to_string() }]).to_string();
    let mut socket = TcpStream::connect(stage.admin)?;
    write!(
        socket,
        "PATCH /id/s0/upstreams HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        stage.admin,
        body.len()
    )?;
    let mut reply = String::new();
    socket.read_to_string(&mut reply)?;
    ensure!(reply.starts_with("HTTP/1.1 200 "), "refused: {reply}");
    Ok(())
}
