//! `uh-deploy validate`

use super::Done;
use super::exit::Exit;
use super::session::Session;
use crate::cli::report::Form;
use crate::validate;

pub(super) async fn validate(session: &Session) -> Done {
    let checks = validate::validate(&session.config, &*session.runtime).await;
    let report = &session.report;
    let failed = checks.iter().filter(|check| !check.passed).count();
    if report.form() == Form::Json {
        report.document(&serde_json::json!({"passed": failed == 0, "checks": checks}));
    } else {
        for check in &checks {
            let mark = if check.passed { "✓" } else { "✗" };
            report.say(&format!("{mark} {}: {}", check.name, check.found));
            check.remedy.iter().for_each(|remedy| report.say(&format!("    → {remedy}")));
        }
        if failed > 0 {
            report.say(&format!("❌ {failed} of {} checks failed", checks.len()));
        }
    }
    Ok(if failed == 0 { Exit::Done } else { Exit::Failed })
}
