//! `uh-deploy blue-green --first` of a release: deploys all services if none of them was ever deployed.

use super::Release;
use crate::cli::blue_green;
use crate::cli::exit::{CliError, Exit};
use crate::proxy::ProxyService;

/// Each member's service at uh-proxy, which may still be starting.
pub(super) async fn proxies(release: &Release) -> Result<Vec<ProxyService>, CliError> {
    let mut proxies = Vec::with_capacity(release.members.len());
    for member in &release.members {
        proxies.push(blue_green::proxy_soon(member).await?);
    }
    Ok(proxies)
}

/// Whether every service was deployed already, and answers.
///
/// # Errors
/// Only some were deployed, so this is neither the first release nor is there nothing to do; or one of them doesn't
/// answer.
pub(super) async fn serves_already(release: &Release, proxies: &[ProxyService]) -> Result<bool, CliError> {
    let (mut deployed, mut missing) = (Vec::new(), Vec::new());
    for (member, proxy) in release.members.iter().zip(proxies) {
        let serves = blue_green::serves_already(member, proxy).await?;
        let list = if serves { &mut deployed } else { &mut missing };
        list.push(proxy.service.as_str());
    }
    if !missing.is_empty() && !deployed.is_empty() {
        let message = format!(
            "this isn't the first release: {} was deployed before, {} wasn't; nothing was changed. Deploy that first, with its own configuration, or drop --first",
            deployed.join(", "),
            missing.join(", ")
        );
        return Err(CliError::new(Exit::Failed, message));
    }
    Ok(missing.is_empty())
}
