//! `uh-proxy certificates`

use jiff::Timestamp;
use uh_protocol::status::{CertificateSource, CertificateStatus};

use super::args::CertificatesArgs;
use super::exit::{Exit, Failed};
use super::{Done, say, say_json, target};

pub(super) fn certificates(args: &CertificatesArgs) -> Done {
    target::call(async {
        let list = target::client(&args.client).certificates().await?;
        if args.client.json {
            say_json(&list)?;
        } else {
            report(&list.certificates)?;
        }
        let now = Timestamp::now();
        let good = list.certificates.iter().all(|certificate| is_good(certificate, now));
        Ok(if good { Exit::Done } else { Exit::Failed })
    })
}

/// Whether nothing is wrong with it: a monitoring script needs no more than the exit code.
fn is_good(certificate: &CertificateStatus, now: Timestamp) -> bool {
    let expires = certificate.expires.as_ref().and_then(|at| at.parse::<Timestamp>().ok());
    certificate.problem.is_none() && expires.is_some_and(|at| at > now)
}

fn report(certificates: &[CertificateStatus]) -> Result<(), Failed> {
    if certificates.is_empty() {
        return say("no certificates: HTTPS isn't configured");
    }
    let width = certificates.iter().map(|one| one.name.len()).max().unwrap_or_default().max(4);
    say(format_args!("{:<width$}  source  {:<20}  {:<20}  hosts", "name", "expires", "next try"))?;
    for certificate in certificates {
        let source = match certificate.source {
            CertificateSource::File => "file",
            CertificateSource::Acme => "acme",
            CertificateSource::Other => "?",
        };
        say(format_args!(
            "{:<width$}  {source:<6}  {:<20}  {:<20}  {}",
            certificate.name,
            certificate.expires.as_deref().unwrap_or("not issued yet"),
            certificate.next_try.as_deref().unwrap_or("-"),
            certificate.names.join(", ")
        ))?;
        if let Some(problem) = &certificate.problem {
            say(format_args!("  last error: {problem}"))?;
        }
    }
    Ok(())
}
