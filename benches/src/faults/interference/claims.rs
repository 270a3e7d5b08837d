//! Compares what a command reports about the active backend with the backend that answers. Pure.

use std::fmt;

/// The backend that answers through uh-proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Serves {
    pub(super) backend: String,
    pub(super) version: String,
}

impl fmt::Display for Serves {
    /// As `uh-deploy` names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (v{})", self.backend, self.version)
    }
}

/// How a command ended.
#[derive(Debug, Clone)]
pub(super) struct Said {
    /// `None`: ended by a signal.
    pub(super) code: Option<i32>,
    pub(super) text: String,
}

/// Lines that name another backend or version than `serves`.
fn wrong_claims(text: &str, serves: &Serves) -> Vec<String> {
    let claims = text.lines().filter(|line| line.contains(" serves"));
    let wrong = claims.filter(|line| !line.contains(&format!("{serves} serves")));
    wrong.map(|line| format!("{serves} answers, but: {}", line.trim())).collect()
}

/// `Active: …` of the last step, if it was reached.
fn active(text: &str, step: &str) -> Option<String> {
    let last_step = text.split(step).nth(1)?;
    last_step.lines().find_map(|line| line.trim().strip_prefix("Active: ")).map(str::to_owned)
}

/// Requires words that belong to an exit code; they may begin a sentence.
fn missing(said: &Said, word: &str) -> Vec<String> {
    let is_missing = !said.text.to_lowercase().contains(&word.to_lowercase());
    is_missing.then(|| format!("exit {:?} without the words {word:?}", said.code)).into_iter().collect()
}

/// Checks the output of a deploy of `version`.
pub(super) fn of_deploy(said: &Said, version: &str, serves: &Serves) -> Vec<String> {
    let mut wrong = wrong_claims(&said.text, serves);
    let is_new = serves.version == version;
    match said.code {
        Some(0) => {
            wrong.extend(missing(said, "✅ Deployment complete!"));
            // What step 7 reports is true at that time; after a successful deploy it must still be true at the end.
            let active = active(&said.text, "[7/7]");
            if !is_new || active.as_ref() != Some(&serves.backend) {
                wrong.push(format!("exit 0, Active: {active:?}, but {serves} answers"));
            }
        }
        Some(1) => {
            wrong.extend(missing(said, "nothing has changed for users"));
            if is_new {
                wrong.push(format!("exit 1, but {serves} answers"));
            }
        }
        // 6: a manual switch went to the candidate, which had passed its checks, but the deploy hadn't switched to it.
        Some(code @ (5 | 6)) => {
            wrong
                .extend(missing(said, if code == 5 { "Superseded" } else { "Manual intervention required" }));
            wrong.extend(missing(said, &format!("{serves} serves")));
        }
        code => wrong.push(format!("exit {code:?}")),
    }
    wrong
}

/// Checks a rollback's output. `bad`: the version that it had to undo.
pub(super) fn of_rollback(said: &Said, bad: &str, serves: &Serves) -> Vec<String> {
    // What the recovery reported was true before the rollback.
    let own = ["Finished: ", "Undone: "].iter().find_map(|words| said.text.split(words).nth(1));
    let own = own.map_or(said.text.as_str(), |rest| rest.split_once('\n').map_or("", |(_, own)| own));
    let mut wrong = wrong_claims(own, serves);
    // Five: traffic moved while it waited, so it undid nothing.
    if serves.version == bad && said.code != Some(5) {
        wrong.push(format!("{serves} answers after the rollback"));
    }
    match said.code {
        Some(0) => {
            wrong.extend(missing(said, "✅ Rollback complete"));
            wrong.extend(missing(said, &format!("{serves} serves; undone: ")));
            let active = active(&said.text, "[4/4]");
            if active != Some(serves.to_string()) {
                wrong.push(format!("exit 0, Active: {active:?}, but {serves} answers"));
            }
        }
        Some(code @ (1 | 5)) => {
            wrong.extend(missing(said, "nothing was changed"));
            wrong.extend(missing(said, &format!("{serves} serves")));
            if code == 5 {
                wrong.extend(missing(said, "traffic moved while it waited"));
            }
        }
        code => wrong.push(format!("exit {code:?}")),
    }
    wrong
}

/// Checks a recovery's output.
pub(super) fn of_recovery(said: &Said, serves: &Serves) -> Vec<String> {
    let mut wrong = wrong_claims(&said.text, serves);
    if said.code != Some(0) {
        wrong.push(format!("recover: exit {:?}", said.code));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: i32, text: &str) -> Said {
        Said { code: Some(code), text: text.to_owned() }
    }

    fn green() -> Serves {
        Serves { backend: "green".to_owned(), version: "2".to_owned() }
    }

    const DEPLOYED: &str = "[7/7] Updating deployment state...\n      Active: green\n      Version: 2\n\n✅ Deployment complete!\n";

    #[test]
    fn a_true_deploy_has_no_difference_and_each_lie_is_one() {
        for (code, text, version, count) in [
            (0, DEPLOYED.to_owned(), "2", 0),
            (0, DEPLOYED.replace("green", "blue"), "2", 1),
            (0, DEPLOYED.to_owned(), "3", 1),
            (0, DEPLOYED.replace("✅ Deployment complete!", ""), "2", 1),
            (0, "✅ Deployment complete!".to_owned(), "2", 1),
            (1, "nothing has changed for users: green (v2) serves".to_owned(), "3", 0),
            (1, "nothing has changed for users: blue (v1) serves".to_owned(), "3", 1),
            (1, "nothing has changed for users: green (v2) serves".to_owned(), "2", 1),
            (1, "green (v2) serves".to_owned(), "3", 1),
            (5, "Superseded: green (v2) serves".to_owned(), "3", 0),
            (5, "Superseded".to_owned(), "3", 1),
            (5, "Superseded: green (v1) serves".to_owned(), "3", 2),
            (6, "Superseded: green (v2) serves".to_owned(), "3", 1),
            (4, String::new(), "3", 1),
        ] {
            let wrong = of_deploy(&said(code, &text), version, &green());
            assert_eq!(wrong.len(), count, "{code} {text}: {wrong:?}");
        }
        assert_eq!(of_deploy(&Said { code: None, text: String::new() }, "3", &green()), ["exit None"]);
    }

    const ROLLED_BACK: &str = "[4/4] Updating state...\n      Active: green (v2)\n\n✅ Rollback complete in 9 ms!\n   green (v2) serves; undone: blue (v3)\n";

    const MOVED: &str = "blue (v1) was active, but traffic moved while it waited for the lock: green (v2) serves. Nothing was changed\n";

    #[test]
    fn a_true_rollback_has_no_difference_and_each_lie_is_one() {
        for (code, text, bad, count) in [
            (0, ROLLED_BACK.to_owned(), "3", 0),
            (0, format!("Finished: blue (v3) serves\n{ROLLED_BACK}"), "3", 0),
            (0, ROLLED_BACK.replace("Active: green", "Active: blue"), "3", 1),
            (0, ROLLED_BACK.replace("green (v2) serves", "blue (v3) serves"), "3", 2),
            (0, ROLLED_BACK.to_owned(), "2", 1),
            (
                1,
                "Undone: the candidate is gone; green (v2) serves\nnothing was changed: green (v2) serves"
                    .to_owned(),
                "3",
                0,
            ),
            (1, "green (v2) serves".to_owned(), "3", 1),
            (1, "Nothing was changed: green (v1) serves".to_owned(), "3", 2),
            (1, "Nothing was changed.".to_owned(), "3", 1),
            (5, MOVED.to_owned(), "2", 0),
            (5, MOVED.replace("green (v2)", "blue (v3)"), "2", 2),
            (5, MOVED.replace("while it waited", ""), "2", 1),
            (0, MOVED.to_owned(), "2", 4),
            (6, String::new(), "3", 1),
        ] {
            let wrong = of_rollback(&said(code, &text), bad, &green());
            assert_eq!(wrong.len(), count, "{code} {text}: {wrong:?}");
        }
    }

    #[test]
    fn a_recovery_must_end_well_and_say_who_answers() {
        assert!(of_recovery(&said(0, "Nothing to recover"), &green()).is_empty());
        assert_eq!(of_recovery(&said(6, "blue (v2) serves"), &green()).len(), 2);
    }
}
