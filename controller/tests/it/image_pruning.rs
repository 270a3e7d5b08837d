//! `uh-deploy prune` and `image_keep` against a real Docker Engine. Without one, each test says so in a line.

use std::collections::BTreeSet;

use crate::container_deploys::{Harbour, Kind};
use crate::containers::{compose_or_skip, engine_or_skip};

impl Harbour {
    /// Deploys a version whose image is made of this content: the same content is the same image.
    fn deploy_content(&self, version: &str, content: &str) {
        self.content(content);
        self.deploy(version);
    }

    /// What the next image is made of: nothing that another test makes one of, which the engine would take for the same.
    fn content(&self, content: &str) {
        let content = format!("{}-{content}", self.name());
        self.dockerfile(&format!("ENV CONTENT={content}\nCMD [\"perl\", \"/app.pl\"]"));
    }

    /// The tags that the engine has under the name of this test's images, in alphabetical order.
    fn tags(&self) -> Vec<String> {
        let listed = self.docker(&["images", "--format", "{{.Tag}}", &self.name()]);
        let mut tags: Vec<_> = listed.lines().map(str::to_owned).collect();
        tags.sort();
        tags
    }

    fn image(&self, version: &str) -> String {
        format!("{}:{version}", self.name())
    }
}

/// A container and an image name that don't belong to uh-deploy.
struct Foreign<'a> {
    harbour: &'a Harbour,
    container: String,
    name: String,
}

impl<'a> Foreign<'a> {
    /// The container doesn't even run.
    fn new(harbour: &'a Harbour, held: &str, named: &str) -> Self {
        let (container, name) = (format!("{}-held", harbour.name()), format!("{}-kept:1", harbour.name()));
        harbour.docker(&["create", "--name", &container, &harbour.image(held)]);
        harbour.docker(&["tag", &harbour.image(named), &name]);
        Self { harbour, container, name }
    }

    fn remove_name(&self) {
        self.harbour.docker(&["rmi", &self.name]);
    }

    fn remove_container(&self) {
        self.harbour.docker(&["rm", &self.container]);
    }
}

impl Drop for Foreign<'_> {
    fn drop(&mut self) {
        self.remove_name();
        self.remove_container();
    }
}

#[test]
fn prune_removes_the_oldest_and_nothing_that_is_used_or_that_a_rollback_would_start() {
    if !engine_or_skip("pruning of images") {
        return;
    }
    let harbour = Harbour::new(Kind::Docker, None);
    harbour.expect(2, &["prune"]).says("no number of images to keep: pass --keep N, or set image_keep");
    harbour.expect(0, &["prune", "--keep", "1"]).says("Nothing to prune");
    for (version, content) in [("1.0.0", "a"), ("1.0.1", "b"), ("1.0.2", "c"), ("1.0.3", "d")] {
        harbour.deploy_content(version, content);
    }
    // The oldest content again, which makes it the newest image. 1.0.3 is the standby.
    harbour.deploy_content("1.0.4", "a");
    let foreign = Foreign::new(&harbour, "1.0.1", "1.0.2");

    harbour.expect(0, &["prune", "--keep", "3"]).says("Nothing to prune");
    harbour.expect(0, &["prune", "--keep", "1"]).says(&format!("it is also called {}", foreign.name));
    assert_eq!(harbour.tags(), ["1.0.0", "1.0.1", "1.0.2", "1.0.3", "1.0.4"], "each has a reason to stay");

    foreign.remove_name();
    let removed = harbour.expect(0, &["prune", "--keep", "1"]);
    removed.says(&format!("({})", harbour.image("1.0.2")));
    assert_eq!(harbour.tags(), ["1.0.0", "1.0.1", "1.0.3", "1.0.4"]);

    foreign.remove_container();
    harbour.expect(0, &["prune", "--keep", "1"]).says(&format!("({})", harbour.image("1.0.1")));
    assert_eq!(harbour.tags(), ["1.0.0", "1.0.3", "1.0.4"], "1.0.3 isn't among the newest, but on record");

    // What was kept is what a rollback starts, although its container is gone.
    let standby = harbour.running().into_iter().find(|name| name.contains("green")).unwrap();
    assert!(harbour.stage.served().starts_with("blue "), "{}", harbour.stage.served());
    harbour.docker(&["rm", "--force", &standby]);
    harbour.expect(0, &["prune", "--keep", "1"]).says("Nothing to prune");
    harbour.expect(0, &["rollback"]);
    assert_eq!(harbour.stage.served(), "green 1.0.3");
    harbour.expect(0, &["prune", "--keep", "1"]).says("Nothing to prune");
    assert_eq!(harbour.tags(), ["1.0.0", "1.0.3", "1.0.4"]);
}

#[test]
fn prune_goes_from_the_newest_deploy_backwards() {
    if !engine_or_skip("the order of pruning") {
        return;
    }
    let harbour = Harbour::new(Kind::Docker, None);
    for (version, content) in [("1.0.0", "a"), ("1.0.1", "b"), ("1.0.2", "c"), ("1.0.3", "d"), ("1.0.4", "e")]
    {
        harbour.deploy_content(version, content);
    }
    for (keep, left) in [
        ("5", &["1.0.0", "1.0.1", "1.0.2", "1.0.3", "1.0.4"][..]),
        ("4", &["1.0.1", "1.0.2", "1.0.3", "1.0.4"]),
        ("3", &["1.0.2", "1.0.3", "1.0.4"]),
        ("2", &["1.0.3", "1.0.4"]),
        ("1", &["1.0.3", "1.0.4"]),
    ] {
        harbour.expect(0, &["prune", "--keep", keep]);
        assert_eq!(harbour.tags(), left, "--keep {keep}");
    }
}

#[test]
fn image_keep_removes_after_a_good_deploy_and_not_after_a_bad_one() {
    if !engine_or_skip("image_keep") {
        return;
    }
    let harbour = Harbour::new(Kind::Docker, None);
    let keep = "[runtime.docker]\nimage_keep = 2\n";
    harbour.configure(keep);
    for (version, content) in [("1.0.0", "a"), ("1.0.1", "b"), ("1.0.2", "c")] {
        harbour.deploy_content(version, content);
    }
    assert_eq!(harbour.tags(), ["1.0.1", "1.0.2"]);
    // It has an image, but never serves.
    harbour.configure(&format!("{keep}env = {{ FAIL = \"no database\" }}\n"));
    harbour.content("d");
    harbour.expect(1, &["blue-green", "--version", "1.0.3"]);
    assert_eq!(harbour.tags(), ["1.0.1", "1.0.2", "1.0.3"], "a failed deploy removes nothing");
    harbour.configure(keep);
    harbour.expect(0, &["rollback", "--to", "green", "--again"]);
    assert_eq!(harbour.stage.served(), "green 1.0.1");
}

#[test]
fn image_keep_of_compose_removes_our_own_tags_and_leaves_the_users() {
    if !compose_or_skip("image_keep with compose") {
        return;
    }
    let harbour = Harbour::new(Kind::Compose, None);
    harbour.configure("[runtime.compose]\nimage_keep = 1\n");
    let ours = || {
        let pattern = format!("uh-deploy/{}-*", harbour.name());
        let listed = harbour.docker(&["images", "--format", "{{.ID}}", &pattern]);
        // Each has two tags of ours: of its version, and of its id.
        listed.lines().collect::<BTreeSet<_>>().len()
    };
    for (version, content) in [("1.0.0", "a"), ("1.0.1", "b"), ("1.0.2", "c"), ("1.0.3", "d")] {
        harbour.deploy_content(version, content);
    }
    assert_eq!(ours(), 2, "the active one, and the one that a rollback would start");
    let standby = harbour.running().into_iter().find(|name| name.contains("blue")).unwrap();
    harbour.docker(&["rm", "--force", &standby]);
    harbour.expect(0, &["rollback"]);
    assert_eq!(harbour.stage.served(), "blue 1.0.2");
}
