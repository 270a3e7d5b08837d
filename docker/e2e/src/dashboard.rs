//! The queries of the shipped Grafana dashboard, as sent to Prometheus.

use anyhow::{Context as _, Result};
use serde_json::Value;

/// One query, and its place in the dashboard.
#[derive(Debug, Clone)]
pub struct Query {
    /// The panel's title, or `Switches` for the annotation.
    pub title: String,
    /// `PromQL`, with Grafana's variables filled in.
    pub expression: String,
}

/// Reads a dashboard. Panels with another data source than Prometheus are left out.
///
/// # Errors
/// If it isn't the JSON of a dashboard.
pub fn queries(json: &str) -> Result<Vec<Query>> {
    let dashboard: Value = serde_json::from_str(json).context("the dashboard is not JSON")?;
    let mut queries = Vec::new();
    for panel in items(&dashboard["panels"]) {
        for target in items(&panel["targets"]) {
            if target["datasource"]["type"] == "prometheus" {
                queries.push(query(panel, &target["expr"], "title")?);
            }
        }
    }
    for annotation in items(&dashboard["annotations"]["list"]) {
        queries.push(query(annotation, &annotation["expr"], "name")?);
    }
    Ok(queries)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn query(owner: &Value, expression: &Value, title: &str) -> Result<Query> {
    let title = owner[title].as_str().context("a panel has no title")?.to_owned();
    let expression = expression.as_str().with_context(|| format!("{title:?} has no query"))?;
    // The values that Grafana fills in: all services, and four times the scrape interval.
    let expression = expression.replace("$__rate_interval", "20s").replace("$service", ".*");
    Ok(Query { title, expression })
}
