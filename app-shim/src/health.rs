//! The health answer of an app, in the format of `/api/health`.

use std::time::Instant;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use uh_protocol::health::HealthBody;

use uh_system::without_numbers;

/// Which backend and version an app is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppIdentity {
    /// `DEPLOYMENT_ENV`, else `blue`: the backend's name.
    pub deployment: String,
    /// `APP_VERSION`, else `npm_package_version`.
    pub version: Option<String>,
}

/// The health of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthStatus {
    /// The app serves: 200.
    Healthy,
    /// The app doesn't accept connections yet: 503.
    Starting,
    /// The app doesn't serve: 503.
    Unhealthy,
    /// The app is draining: 503.
    Draining,
}

/// Builds health answers for an app.
#[derive(Debug)]
pub struct HealthReporter {
    identity: AppIdentity,
    started_at: Instant,
}

impl AppIdentity {
    /// Reads the identity from an environment, given as a function from name to value. Empty values count as missing.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let given = |name| lookup(name).filter(|value| !value.is_empty());
        Self {
            deployment: given("DEPLOYMENT_ENV").unwrap_or_else(|| "blue".to_owned()),
            version: given("APP_VERSION").or_else(|| given("npm_package_version")),
        }
    }
}

impl HealthStatus {
    /// The value of `status` in the answer.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Starting => "starting",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
        }
    }

    /// The HTTP status of the answer.
    #[must_use]
    pub fn code(self) -> StatusCode {
        match self {
            Self::Healthy => StatusCode::OK,
            Self::Starting | Self::Unhealthy | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl HealthReporter {
    /// Starts counting the uptime now.
    #[must_use]
    pub fn new(identity: AppIdentity) -> Self {
        Self { identity, started_at: Instant::now() }
    }

    /// The answer to a health check. `in_flight` doesn't include the check itself; `reason` says what is wrong.
    #[must_use]
    pub fn answer(
        &self,
        status: HealthStatus,
        in_flight: usize,
        reason: Option<String>,
    ) -> Response<Full<Bytes>> {
        let body = HealthBody {
            status: Some(status.as_str().to_owned()),
            timestamp: Some(format!("{:.3}", jiff::Timestamp::now())),
            deployment: Some(self.identity.deployment.clone()),
            version: self.identity.version.clone(),
            uptime: Some(self.started_at.elapsed().as_secs_f64()),
            in_flight: Some(in_flight as u64),
            reason: reason.map(|reason| without_numbers(&reason)),
        };
        // Plain data with string keys always serialises.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status.code();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn identity(variables: &[(&str, &str)]) -> AppIdentity {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name);
        AppIdentity::from_lookup(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn app_version_takes_precedence_over_npm_package_version() {
        let npm = ("npm_package_version", "1.2.3");
        assert_eq!(identity(&[npm]).version.as_deref(), Some("1.2.3"));
        assert_eq!(identity(&[npm, ("APP_VERSION", "9.0.0")]).version.as_deref(), Some("9.0.0"));
        assert_eq!(identity(&[npm, ("APP_VERSION", "")]).version.as_deref(), Some("1.2.3"));
        assert_eq!(identity(&[]), AppIdentity { deployment: "blue".to_owned(), version: None });
    }

    #[tokio::test]
    async fn the_body_has_the_documented_fields() {
        let health = HealthReporter::new(identity(&[("DEPLOYMENT_ENV", "green"), ("APP_VERSION", "1.2.3")]));
        let answer = health.answer(HealthStatus::Healthy, 3, None);
        assert_eq!(answer.status(), StatusCode::OK);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["status"], "healthy");
        assert_eq!((&body["deployment"], &body["version"]), (&"green".into(), &"1.2.3".into()));
        assert_eq!(body["in_flight"], 3);
        assert!(body["uptime"].as_f64().is_some_and(|uptime| (0.0..60.0).contains(&uptime)));
        let timestamp: jiff::Timestamp = body["timestamp"].as_str().unwrap().parse().unwrap();
        assert!(timestamp.duration_until(jiff::Timestamp::now()).as_secs() < 60);
        assert!(body.get("reason").is_none());
        assert_eq!(health.answer(HealthStatus::Draining, 0, None).status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
