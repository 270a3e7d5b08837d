//! A compose document: the tool's resolved output, reduced to the deployed service.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::redact::Foreign;

/// A resolved compose file with one service. JSON is YAML, so the tool can read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(in crate::runtime) struct Document(Map<String, Value>);

/// What a document keeps in addition to its service: what the service may refer to.
const KEPT: [&str; 6] = ["version", "name", "networks", "volumes", "secrets", "configs"];

impl Document {
    /// Reduces the tool's output to one service, without its dependencies, which the user runs.
    pub(in crate::runtime) fn of(text: &str, service: &str) -> Result<Self, String> {
        let whole: Value = serde_saphyr::from_str(text)
            .map_err(|e| format!("can't read the compose tool's output: {}", Foreign::error(&e)))?;
        let services = whole.get("services").and_then(Value::as_object);
        let mut definition = services
            .and_then(|services| services.get(service))
            .and_then(Value::as_object)
            .cloned()
            .ok_or_else(|| {
                let known = services.map_or(Vec::new(), |all| all.keys().map(String::as_str).collect());
                format!("the compose files have no service {service}, only {}", known.join(", "))
            })?;
        for key in ["depends_on", "links", "profiles", "scale"] {
            definition.remove(key);
        }
        let mut kept: Map<String, Value> =
            KEPT.iter().filter_map(|key| Some(((*key).to_owned(), whole.get(key)?.clone()))).collect();
        kept.insert("services".to_owned(), json!({ service: definition }));
        Ok(Self(kept))
    }

    fn service(&self) -> Option<&Map<String, Value>> {
        self.0.get("services")?.as_object()?.values().next()?.as_object()
    }

    fn service_mut(&mut self) -> Option<&mut Map<String, Value>> {
        self.0.get_mut("services")?.as_object_mut()?.values_mut().next()?.as_object_mut()
    }

    /// The project, if the files name it.
    pub(super) fn project(&self) -> Option<String> {
        self.0.get("name")?.as_str().map(str::to_owned)
    }

    /// Whether its image is built from a context.
    pub(super) fn is_built(&self) -> bool {
        self.service().is_some_and(|service| service.contains_key("build"))
    }

    /// The image that it names.
    pub(in crate::runtime) fn image(&self) -> Option<String> {
        self.service()?.get("image")?.as_str().map(str::to_owned)
    }

    /// Whether it publishes a port of this machine.
    pub(super) fn publishes(&self) -> bool {
        let ports = self.service().and_then(|service| service.get("ports")).and_then(Value::as_array);
        ports.is_some_and(|ports| !ports.is_empty())
    }

    /// Sets the name of the image to build.
    pub(super) fn set_image(&mut self, image: &str) {
        if let Some(service) = self.service_mut() {
            service.insert("image".to_owned(), image.into());
        }
    }

    /// Pins the service to a local image, so that nothing is built or pulled.
    pub(super) fn pin(&mut self, image: &str) {
        self.set_image(image);
        if let Some(service) = self.service_mut() {
            service.remove("build");
            service.remove("pull_policy");
        }
    }

    /// Adds labels to the container.
    pub(super) fn label(&mut self, labels: &HashMap<String, String>) {
        let Some(service) = self.service_mut() else { return };
        // Compose accepts a mapping or a list of NAME=value.
        let mut all: Map<String, Value> = match service.remove("labels") {
            Some(Value::Object(map)) => map,
            Some(Value::Array(list)) => list
                .iter()
                .filter_map(Value::as_str)
                .map(|text| text.split_once('=').unwrap_or((text, "")))
                .map(|(name, value)| (name.to_owned(), value.into()))
                .collect(),
            _ => Map::new(),
        };
        all.extend(labels.iter().map(|(name, value)| (name.clone(), escape(value).into())));
        service.insert("labels".to_owned(), Value::Object(all));
    }

    /// The document as text for the tool.
    pub(super) fn text(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }
}

/// Escapes a value, so that the tool doesn't interpolate it.
fn escape(value: &str) -> String {
    value.replace('$', "$$")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESOLVED: &str = "
services:
  db:
    image: postgres:15
  green:
    build: {context: /srv/app}
    depends_on: [db]
    environment: {APP_VERSION: '1.0.1', MONEY: $$5}
    labels: [team=web]
    ports: ['127.0.0.1:3009:3000']
    networks: {default: null}
networks:
  default: {name: srv_default}
version: '3.9'
";

    #[test]
    fn a_document_is_reduced_to_one_service_and_pinned() {
        let mut document = Document::of(RESOLVED, "green").unwrap();
        assert!(document.is_built() && document.publishes());
        document.pin("uh-deploy/srv-green:00ff");
        document.label(&HashMap::from([("uh-deploy.backend".to_owned(), "a$b".to_owned())]));
        assert_eq!(
            serde_json::from_str::<Value>(&document.text()).unwrap(),
            json!({
                "version": "3.9",
                "networks": { "default": { "name": "srv_default" } },
                "services": { "green": {
                    "image": "uh-deploy/srv-green:00ff",
                    "environment": { "APP_VERSION": "1.0.1", "MONEY": "$$5" },
                    "labels": { "team": "web", "uh-deploy.backend": "a$$b" },
                    "ports": ["127.0.0.1:3009:3000"],
                    "networks": { "default": null },
                } },
            })
        );
        assert!(!document.is_built());
    }

    #[test]
    fn a_missing_service_is_reported_with_the_existing_ones() {
        assert_eq!(
            Document::of(RESOLVED, "blue").unwrap_err(),
            "the compose files have no service blue, only db, green"
        );
        assert!(Document::of("}{", "blue").is_err());
        assert!(Document::of("", "blue").is_err());
    }
}
