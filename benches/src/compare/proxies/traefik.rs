//! Traefik (its plain listener takes HTTP/2 by prior knowledge, too), with its routes in a file that it watches; a switch replaces the file.

use std::process::Command;

use anyhow::Result;
use serde_json::{Map, json};

use super::{ProxyInputs, host, replace_file};

/// Its routes, with this backend of the first service active. JSON is YAML.
fn routes(stage: &ProxyInputs<'_>, active: usize) -> String {
    let (mut routers, mut services) = (Map::new(), Map::new());
    for (service, backends) in stage.terms.services.iter().enumerate() {
        let name = format!("s{service}");
        let address = backends[if service == 0 { active } else { 0 }];
        let mut router = json!({ "rule": format!("Host(`{}`)", host(service)), "service": name });
        if stage.pair().is_some() {
            router["tls"] = json!({});
        }
        routers.insert(name.clone(), router);
        let servers = json!([{ "url": format!("http://{address}") }]);
        services.insert(name, json!({ "loadBalancer": { "servers": servers } }));
    }
    let mut all = json!({ "http": { "routers": routers, "services": services } });
    if let Some(pair) = stage.pair() {
        let certificate = json!({ "certFile": pair.certificate, "keyFile": pair.key });
        all["tls"] = json!({ "certificates": [certificate] });
    }
    all.to_string()
}

pub(super) fn command(stage: &ProxyInputs<'_>) -> Result<Command> {
    // It watches the directory of the file, which must hold nothing that changes by itself.
    let watched = stage.dir.join("routes");
    std::fs::create_dir_all(&watched)?;
    std::fs::write(watched.join("routes.yml"), routes(stage, 0))?;
    let mut command = Command::new(stage.program);
    command.args([
        format!("--entrypoints.web.address={}", stage.listen),
        format!("--providers.file.filename={}", watched.join("routes.yml").display()),
        "--providers.file.watch=true".to_owned(),
        "--log.level=ERROR".to_owned(),
        "--global.checknewversion=false".to_owned(),
        "--global.sendanonymoususage=false".to_owned(),
        "--serverstransport.maxidleconnsperhost=512".to_owned(),
    ]);
    if stage.terms.access_log {
        command.args([
            "--accesslog=true".to_owned(),
            format!("--accesslog.filepath={}", stage.file("access.log")),
            "--accesslog.bufferingsize=128".to_owned(),
        ]);
    }
    command.env("GOMAXPROCS", stage.workers().to_string());
    Ok(command)
}

pub(super) fn switch(stage: &ProxyInputs<'_>, to: usize) -> Result<()> {
    replace_file(&stage.dir.join("routes"), "routes.yml", &routes(stage, to))
}
