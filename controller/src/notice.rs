//! Hooks and the webhook. Only `pre_deploy` can veto; all others are notifications.

use std::process::Command;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::command::{self, CommandFailed};
use crate::config::{Config, Notice};
use crate::redact::Foreign;

/// How many lines of a failed hook are shown.
const HOOK_LOG_LINES: usize = 20;

/// How much of a webhook's response body is read and discarded.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Before anything is done.
    PreDeploy,
    /// After traffic has moved.
    PostSwitch,
    /// After a failure.
    OnFailure,
    /// After traffic has moved back.
    OnRollback,
}

impl Hook {
    /// Its key in the configuration.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PreDeploy => "pre_deploy",
            Self::PostSwitch => "post_switch",
            Self::OnFailure => "on_failure",
            Self::OnRollback => "on_rollback",
        }
    }
}

/// What happens while a hook runs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum HookProgress<'a> {
    /// It starts, with these words.
    Starts { hook: Hook, words: &'a [String] },
    /// It printed a line.
    Output(&'a Foreign),
}

/// Runs a hook, if there is one, with the event on its standard input. It runs in the configuration's directory, with
/// uh-deploy's environment and `UH_DEPLOY_HOOK`.
///
/// # Errors
/// It couldn't be run, failed, or took too long.
pub(crate) async fn hook(
    config: &Config,
    hook: Hook,
    event: &Value,
    listener: &dyn Fn(HookProgress<'_>),
) -> Result<(), CommandFailed> {
    let hooks = &config.hooks;
    let words = match hook {
        Hook::PreDeploy => &hooks.pre_deploy,
        Hook::PostSwitch => &hooks.post_switch,
        Hook::OnFailure => &hooks.on_failure,
        Hook::OnRollback => &hooks.on_rollback,
    };
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    listener(HookProgress::Starts { hook, words });
    // `./migrate.sh` is relative to the configuration, like every path in it; a bare name is looked up in PATH.
    let program = if program.contains('/') { config.directory.join(program) } else { program.into() };
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&config.directory).envs(std::env::vars_os());
    command.env("UH_DEPLOY_HOOK", hook.name());
    let input = event.to_string().into_bytes();
    command::run(
        &command,
        Some(input),
        hooks.timeout,
        &|line| listener(HookProgress::Output(line)),
        HOOK_LOG_LINES,
    )
    .await
}

/// Sends the event to the webhook, if there is one.
///
/// # Errors
/// The webhook failed. The text contains no secret.
pub(crate) async fn webhook(notice: &Notice, event: &Value) -> Result<(), String> {
    let secret = notice.webhook_env.as_ref().and_then(|name| std::env::var(name).ok());
    let Some(url) = secret.or_else(|| notice.webhook.clone()) else { return Ok(()) };
    match tokio::time::timeout(notice.timeout, post(&url, event)).await {
        Ok(result) => result.map_err(|e| format!("the webhook failed: {}", Foreign::error(&*e))),
        Err(_) => Err(format!("the webhook didn't reply within {}", crate::time::span(notice.timeout))),
    }
}

async fn post(url: &str, event: &Value) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let rest = url.strip_prefix("http://").ok_or("only http:// URLs are supported")?;
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let address = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    let stream = TcpStream::connect(&address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::post(path)
        .header("host", authority)
        .header("content-type", "application/json")
        .header("connection", "close")
        .body(Full::new(Bytes::from(event.to_string())))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let _ = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        if status.is_success() { Ok(()) } else { Err(format!("status {status}").into()) }
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    }
}
