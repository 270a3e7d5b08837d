//! HAProxy; a switch is two commands on its runtime socket, in one call.

use std::fmt::Write as _;
use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{ProxyInputs, host};

pub(super) fn command(stage: &ProxyInputs<'_>) -> Result<Command> {
    // It writes its log to standard output, which is a file here.
    let log = if stage.terms.access_log { "log stdout format raw local0\n" } else { "" };
    let use_log = if stage.terms.access_log { "log global\noption httplog\n" } else { "" };
    let tls = match (stage.pair(), stage.clear_http2()) {
        (Some(pair), _) => format!("ssl crt {} alpn h2,http/1.1 ssl-min-ver TLSv1.2", pair.both.display()),
        (None, true) => "proto h2".to_owned(),
        (None, false) => String::new(),
    };
    let scheme = if stage.pair().is_some() { "https" } else { "http" };
    let mut text = format!(
        "global\nnbthread {}\nmaxconn 15000\nno strict-limits\nstats socket {} mode 600 level admin\n{log}\
         defaults\nmode http\n{use_log}timeout connect 5s\ntimeout client 75s\ntimeout server 75s\n\
         timeout http-keep-alive 75s\ntimeout tunnel 1h\nhttp-reuse always\n\
         frontend front\nbind {} backlog 4096 {tls}\noption forwardfor\n\
         http-request set-header X-Forwarded-Proto {scheme}\n\
         http-request set-header X-Forwarded-Host %[req.hdr(Host)]\n\
         use_backend %[req.hdr(Host),lower,field(1,.)]\n",
        stage.workers(),
        stage.file("haproxy.sock"),
        stage.listen
    );
    for (service, [blue, green]) in stage.terms.services.iter().enumerate() {
        write!(
            text,
            "# {}\nbackend s{service}\nserver blue {blue}\nserver green {green} disabled\n",
            host(service)
        )?;
    }
    let config = stage.write("haproxy.cfg", &text)?;
    let mut command = Command::new(stage.program);
    command.arg("-db").arg("-f").arg(config);
    Ok(command)
}

pub(super) fn switch(stage: &ProxyInputs<'_>, to: usize) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let [new, old] = if to == 0 { ["blue", "green"] } else { ["green", "blue"] };
    let mut socket = UnixStream::connect(stage.dir.join("haproxy.sock"))?;
    writeln!(socket, "set server s0/{new} state ready; set server s0/{old} state maint")?;
    let mut reply = String::new();
    socket.read_to_string(&mut reply)?;
    ensure!(reply.trim().is_empty(), "refused: {reply}");
    Ok(())
}
