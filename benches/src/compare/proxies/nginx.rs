//! nginx, as the guide to zero-downtime deployments sets it up: an included file says which backend is active, and a
//! switch rewrites it and reloads.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::{DESCRIPTORS, ProxyInputs, host, replace_file};

/// How the access log is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Log {
    /// As many lines at once, and as late, as ours.
    InBatches,
    /// The default: one write for each request.
    ByLine,
}

pub(super) fn command(stage: &ProxyInputs<'_>, log: Log) -> Result<Command> {
    let dir = stage.dir.display();
    let log = match (stage.terms.access_log, log) {
        (false, _) => "off".to_owned(),
        (true, Log::InBatches) => format!("{dir}/access.log combined buffer=128k flush=100ms"),
        (true, Log::ByLine) => format!("{dir}/access.log combined"),
    };
    let mut text = format!(
        "daemon off;\nuser root root;\nworker_processes {};\nworker_rlimit_nofile {DESCRIPTORS};\n\
         pid {dir}/nginx.pid;\nerror_log {dir}/error.log warn;\nevents {{ worker_connections 15000; }}\nhttp {{\n\
         access_log {log};\nkeepalive_requests 1000000000;\nclient_max_body_size 0;\n\
         client_body_temp_path {dir}/client;\nproxy_temp_path {dir}/proxy;\nfastcgi_temp_path {dir}/fastcgi;\n\
         uwsgi_temp_path {dir}/uwsgi;\nscgi_temp_path {dir}/scgi;\n\
         map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}\ninclude {dir}/upstream0.conf;\n",
        stage.workers()
    );
    let listen = match (stage.pair(), stage.clear_http2()) {
        (Some(pair), _) => {
            let (certificate, key) = (pair.certificate.display(), pair.key.display());
            writeln!(
                text,
                "ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;"
            )?;
            format!("{} ssl http2", stage.listen)
        }
        (None, true) => format!("{} http2", stage.listen),
        (None, false) => stage.listen.to_string(),
    };
    for (service, backends) in stage.terms.services.iter().enumerate() {
        if service > 0 {
            text.push_str(&upstream(service, &backends[0].to_string()));
        }
        write!(
            text,
            "server {{ listen {listen} backlog=4096; server_name {};\nlocation / {{ proxy_pass http://s{service};\n\
             proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;\n\
             proxy_set_header Connection $connection_upgrade; proxy_set_header Host $host;\n\
             proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;\n\
             proxy_set_header X-Forwarded-Host $host; }} }}\n",
            host(service)
        )?;
    }
    // The backlog may be said only once for each address.
    let first = text.find(" backlog=4096").map_or(text.len(), |at| at + 1);
    let text = [&text[..first], &text[first..].replace(" backlog=4096", "")].concat() + "}\n";
    stage.write("upstream0.conf", &upstream(0, &stage.terms.services[0][0].to_string()))?;
    stage.write("nginx.conf", &text)?;
    let mut command = Command::new(stage.program);
    command.arg("-c").arg(stage.dir.join("nginx.conf")).arg("-p").arg(stage.dir);
    Ok(command)
}

fn upstream(service: usize, address: &str) -> String {
    format!("upstream s{service} {{ server {address}; keepalive 512; keepalive_requests 1000000000; }}\n")
}

pub(super) fn switch(stage: &ProxyInputs<'_>, to: usize) -> Result<()> {
    replace_file(stage.dir, "upstream0.conf", &upstream(0, &stage.terms.services[0][to].to_string()))?;
    let mut command = Command::new(stage.program);
    command.args(["-s", "reload", "-c"]).arg(stage.dir.join("nginx.conf")).arg("-p").arg(stage.dir);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    ensure!(status.success(), "nginx -s reload ended with {status}");
    Ok(())
}
