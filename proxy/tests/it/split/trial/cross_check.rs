//! Cross-checks: the active version is the suspect, and half of its clients are on the old one.

use uh_protocol::Code;
use uh_protocol::request::{MAX_WARM_UP_MS, SwitchRequest};
use uh_protocol::status::Suspect;

use super::*;
use crate::harness::{app, cli};

/// Half of the clients go back to blue.
fn half_back() -> SplitRequest {
    SplitRequest {
        to: Some(backend("blue")),
        weight: 50.0,
        ttl_ms: Some(60_000),
        suspect: Suspect::Active,
        warm_up_ms: Some(0),
        ..SplitRequest::default()
    }
}

impl Setup {
    /// Green is active, after blue has made a history.
    async fn switched() -> Self {
        let setup = Self::start("").await;
        let switch = SwitchRequest {
            to: backend("green"),
            expect_active: None,
            expect_generation: None,
            force: false,
        };
        setup.proxy.client.switch(&app(), &switch).await.unwrap();
        setup
    }

    async fn cross_check(&self) {
        split(&self.proxy, &half_back()).await;
        until("it is judged", async || {
            self.proxy.service().await.trial.filter(|trial| !trial.ended).map(drop)
        })
        .await;
    }

    /// Asks until the trial has this many failing clients on both sides together.
    async fn ask_until_failed(&self, clients: u64) -> TrialStatus {
        let mut client = 10_000;
        until("enough clients have failed", async || {
            self.ask(client..client + 20, "/").await;
            client += 20;
            let trial = self.trial().await;
            (trial.failures.new_clients + trial.failures.old_clients >= clients).then_some(trial)
        })
        .await
    }
}

#[tokio::test]
async fn an_active_version_that_is_worse_is_found_and_nothing_moves_by_itself() {
    let mut setup = Setup::switched().await;
    setup.new_one_does(500);
    setup.cross_check().await;
    // Each look has other clients: those who have failed tell nothing new.
    let bad = async |setup: &Setup, mut from: u32| {
        until("it is found worse", async || {
            setup.ask(from..from + 40, "/").await;
            from += 40;
            Some(setup.trial().await).filter(|trial| trial.state == TrialState::Bad)
        })
        .await
    };
    let trial = bad(&setup, 10_000).await;
    assert_eq!((trial.backend.as_str(), trial.suspect, trial.ended), ("green", Suspect::Active, false));
    assert!(trial.failures.new_clients >= 3 && trial.failures.old_clients == 0, "{trial:?}");
    assert!(trial.slow_after_ms.is_some(), "the old version's history is known: {trial:?}");
    let (_, out, _) = cli(&setup.home.socket(), &["status"]).await;
    assert!(out.contains("a switch is needed to take its clients back"), "{out}");
    let held = setup.proxy.service().await.split.unwrap();
    assert_eq!((held.to.as_str(), held.weight, held.suspect), ("blue", 50.0, Suspect::Active));
    // A restart keeps who is suspected; without a history the coin decides alone.
    setup.proxy.kill();
    setup.proxy = setup.home.start().await;
    setup.proxy.until_healthy().await;
    assert_eq!(setup.proxy.service().await.split.unwrap().suspect, Suspect::Active);
    until("it is judged again", async || setup.proxy.service().await.trial.map(drop)).await;
    let trial = bad(&setup, 20_000).await;
    assert_eq!((trial.backend.as_str(), trial.slow_after_ms), ("green", None));
    setup.proxy.switch("blue").await;
    let (_, out, _) = cli(&setup.home.socket(), &["status"]).await;
    assert!(out.contains("it was worse than the other side"), "{out}");
}

#[tokio::test]
async fn an_outage_of_both_is_not_the_fault_of_the_active_version() {
    let setup = Setup::switched().await;
    setup.both_do(500);
    setup.cross_check().await;
    let trial = setup.ask_until_failed(200).await;
    assert_eq!(trial.state, TrialState::Undecided, "{trial:?}");
    assert!(trial.failures.ln_coin < 0.0, "{trial:?}");
}

#[tokio::test]
async fn one_that_nobody_renews_gives_everybody_the_active_version() {
    let setup = Setup::switched().await;
    split(&setup.proxy, &SplitRequest { ttl_ms: Some(300), ..half_back() }).await;
    until("it has ended", async || (!setup.is_split().await).then_some(())).await;
    setup.new_one_does(500);
    assert_eq!(setup.ask(10_000..10_040, "/").await, 40, "all clients are on green");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_the_reason() {
    let setup = Setup::switched().await;
    let refused = async |request: SplitRequest| {
        setup.proxy.client.split(&app(), &request).await.unwrap_err().to_string()
    };
    let long = SplitRequest { warm_up_ms: Some(MAX_WARM_UP_MS + 1), ..half_back() };
    assert!(refused(long).await.contains("warm_up_ms is 600001: use 0 to 600000"));
    let nobody = SplitRequest { weight: 0.0, ttl_ms: None, ..half_back() };
    assert!(refused(nobody).await.contains("only valid with a weight above 0"));
    let first = split(&setup.proxy, &half_back()).await;
    let other = SplitRequest { suspect: Suspect::Split, ..half_back() };
    assert!(refused(other.clone()).await.contains("suspects the other side"));
    assert_eq!(code(setup.proxy.client.split(&app(), &other).await.unwrap_err()), Code::Conflict);
    // A renewal says the same.
    let again = SplitRequest { expect_generation: Some(first.generation), ..half_back() };
    assert!(!split(&setup.proxy, &again).await.changed);
}

/// Other endpoints make the same backend active again. What served before it is still known.
#[tokio::test]
async fn a_registration_of_the_active_backend_keeps_the_old_version_s_history() {
    let setup = Setup::switched().await;
    let before = setup.proxy.service().await;
    let green = before.backends.iter().find(|backend| backend.name.as_str() == "green").unwrap();
    let endpoints: Vec<String> =
        green.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    let mut args = vec!["backend", "set", "green", "--version", "other"];
    args.extend(endpoints.iter().flat_map(|endpoint| ["--endpoint", endpoint.as_str()]));
    let (code, out, err) = cli(&setup.home.socket(), &args).await;
    assert_eq!(code, 0, "{out}{err}");
    setup.cross_check().await;
    assert!(setup.trial().await.slow_after_ms.is_some(), "the old version's history is known");
}

/// The warm-up of a trial is what its split says: without one, slow requests count from the first on.
#[tokio::test]
async fn the_warm_up_is_what_the_split_says() {
    for (warm_up_ms, judged) in [(Some(0), true), (None, false), (Some(60_000), false)] {
        let setup = Setup::start("").await;
        split(&setup.proxy, &SplitRequest { warm_up_ms, ..green(50.0) }).await;
        let trial = until("the trial has begun", async || {
            setup.proxy.service().await.trial.filter(|trial| !trial.ended)
        })
        .await;
        if judged {
            until("slowness is judged", async || {
                setup.ask(10_000..10_020, "/").await;
                setup.trial().await.slowness
            })
            .await;
        } else {
            setup.ask(10_000..10_020, "/").await;
            assert_eq!(setup.trial().await.slowness, None, "{warm_up_ms:?}: {trial:?}");
        }
    }
}
