//! Envoy, with its endpoints in a file that it watches; a switch replaces the file.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use super::{ProxyInputs, host, replace_file};

/// Its circuit breakers let this much through: more than any row asks for.
const NO_LIMIT: u32 = 100_000;

fn endpoints(service: usize, address: SocketAddr) -> Value {
    json!({ "resources": [{
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": format!("s{service}"),
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(address) } }] }],
    }] })
}

fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn cluster(stage: &ProxyInputs<'_>, service: usize) -> Value {
    let source = json!({
        "resource_api_version": "V3",
        "path_config_source": { "path": stage.file(&format!("eds{service}.json")) },
    });
    json!({
        "name": format!("s{service}"),
        "type": "EDS",
        "eds_cluster_config": { "eds_config": source },
        "circuit_breakers": { "thresholds": [{
            "max_connections": NO_LIMIT, "max_pending_requests": NO_LIMIT, "max_requests": NO_LIMIT,
        }] },
    })
}

pub(super) fn command(stage: &ProxyInputs<'_>) -> Result<Command> {
    for (service, backends) in stage.terms.services.iter().enumerate() {
        stage.write(&format!("eds{service}.json"), &endpoints(service, backends[0]).to_string())?;
    }
    let services = 0..stage.terms.services.len();
    let virtual_host = |service: usize| {
        let cluster = format!("s{service}");
        json!({
            "name": cluster, "domains": [host(service)],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster, "timeout": "0s" } }],
        })
    };
    let hosts: Vec<Value> = services.clone().map(virtual_host).collect();
    let log = json!([{
        "name": "file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": stage.file("access.log"),
        },
    }]);
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "codec_type": match (stage.pair(), stage.clear_http2()) {
            (Some(_), _) => "AUTO",
            (None, true) => "HTTP2",
            (None, false) => "HTTP1",
        },
        "use_remote_address": true,
        "upgrade_configs": [{ "upgrade_type": "websocket" }],
        "access_log": if stage.terms.access_log { log } else { json!([]) },
        "route_config": { "name": "front", "virtual_hosts": hosts },
        "http_filters": [{
            "name": "router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    let mut chain = json!({ "filters": [{ "name": "http", "typed_config": manager }] });
    if let Some(pair) = stage.pair() {
        chain["transport_socket"] = json!({ "name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificates": [{
                    "certificate_chain": { "filename": pair.certificate },
                    "private_key": { "filename": pair.key },
                }],
                "tls_params": { "tls_maximum_protocol_version": "TLSv1_3" },
            },
        } });
    }
    let clusters: Vec<Value> = services.map(|service| cluster(stage, service)).collect();
    let config = json!({
        "node": { "id": "bench", "cluster": "bench" },
        "static_resources": {
            "listeners": [{
                "name": "front",
                "address": socket(stage.listen),
                "filter_chains": [chain],
            }],
            "clusters": clusters,
        },
    });
    let config = stage.write("envoy.json", &config.to_string())?;
    let mut command = Command::new(stage.program);
    command.arg("-c").arg(config).args(["--use-dynamic-base-id", "--log-level", "error", "--concurrency"]);
    command.arg(stage.workers().to_string());
    Ok(command)
}

pub(super) fn switch(stage: &ProxyInputs<'_>, to: usize) -> Result<()> {
    replace_file(stage.dir, "eds0.json", &endpoints(0, stage.terms.services[0][to]).to_string())
}
