//! Which paths name files.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{FILES, Site, asking};
use crate::harness::until;

/// Whatever a path is like, nothing outside of the root is sent, and nothing hangs.
#[tokio::test]
async fn no_path_leaves_the_root() {
    let site = Site::start(&format!("{FILES}\nfiles_only = true")).await;
    let root = site.root("blue");
    site.put("blue", "ok.txt", "fine");
    site.put("blue", "dir/inner.txt", "inner");
    site.put("blue", ".env", "SECRET");
    site.put("blue", ".git/config", "SECRET");
    site.put("blue", ".well-known/security.txt", "Contact");
    fs::write(site.home.path("app-blue/secret.txt"), "SECRET").unwrap();
    fs::write(site.home.path("secret.txt"), "SECRET").unwrap();
    symlink("../secret.txt", root.join("out")).unwrap();
    symlink("/etc/passwd", root.join("passwd")).unwrap();
    symlink("..", root.join("up")).unwrap();
    symlink("self", root.join("self")).unwrap();
    symlink("dir/inner.txt", root.join("in")).unwrap();
    mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
    let _socket = UnixListener::bind(root.join("socket")).unwrap();
    // A device, if this user may make one: /dev/zero, which never ends.
    let _ = mknodat(CWD, root.join("zero"), FileType::CharacterDevice, Mode::from_raw_mode(0o644), 0x105);
    let mut wire = site.wire().await;
    for path in
        ["/ok.txt", "/in", "/dir/inner.txt", "/%6fk.txt", "/.well-known/security.txt", "/ok.txt?a=../b"]
    {
        assert_eq!(wire.get(path).await.status, 200, "{path}");
    }
    let long = [format!("/{}", "n".repeat(300)), format!("/{}ok.txt", "dir/".repeat(1500))];
    for path in [
        "/..",
        "/../secret.txt",
        "/../../secret.txt",
        "/../../../../../../etc/passwd",
        "/%2e%2e/secret.txt",
        "/%2E%2E/secret.txt",
        "/.%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e%2fsecret.txt",
        "/..%5csecret.txt",
        "/..\\secret.txt",
        "/%252e%252e/secret.txt",
        "/dir/../../secret.txt",
        "/dir/../ok.txt",
        "/./ok.txt",
        "/dir%2finner.txt",
        "/dir%2Finner.txt",
        "/dir%5cinner.txt",
        "//ok.txt",
        "//etc/passwd",
        "/dir//inner.txt",
        "/ok.txt/",
        "/ok.txt/x",
        "/ok.txt%00",
        "/ok.txt%00.html",
        "/%00",
        "/%",
        "/%f",
        "/%zz",
        "/.env",
        "/%2eenv",
        "/.git/config",
        "/dir/.",
        "/out",
        "/passwd",
        "/up",
        "/up/secret.txt",
        "/self",
        "/fifo",
        "/socket",
        "/zero",
        "/missing",
        "/dir",
        "/dir/",
        "/",
        "/ok.txt;x",
        "/OK.TXT",
        &long[0],
        &long[1],
    ] {
        let response = wire.get(path).await;
        assert_eq!(response.status, 404, "{path}: {}", response.text());
        assert!(!response.text().contains("SECRET"), "{path}");
    }
}

#[tokio::test]
async fn what_is_no_file_goes_to_the_app() {
    let site = Site::start(FILES).await;
    site.put("blue", "logo.txt", "the logo");
    site.put("blue", "docs/index.html", "<h1>docs</h1>");
    site.put("blue", "empty/x.txt", "");
    let mut wire = site.wire().await;
    assert_eq!(wire.get("/logo.txt").await.text(), "the logo");
    let of_app = wire.get("/headers").await;
    assert!(of_app.header("x-backend").is_some() && of_app.status == 200, "{}", of_app.head);
    assert!(wire.get("/empty/").await.header("x-backend").is_some(), "a directory without an index");
    assert!(wire.get("/..%2f").await.header("x-backend").is_some());
    // Only GET and HEAD ask for a file, and without a body.
    wire.send("POST /logo.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok").await;
    assert!(wire.response().await.header("x-backend").is_some());
    wire.send("GET /logo.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok").await;
    assert!(wire.response().await.header("x-backend").is_some());
    // An index, and the slash that its links need.
    let index = wire.get("/docs/").await;
    assert_eq!(
        (index.text().as_str(), index.header("content-type")),
        ("<h1>docs</h1>", Some("text/html; charset=utf-8"))
    );
    let slash = wire.get("/docs?a=b").await;
    assert_eq!((slash.status, slash.header("location")), (308, Some("/docs/?a=b")));
    let codes: Vec<_> = until("all is logged", async || {
        let lines = site.home.access_log();
        (lines.len() == 8).then(|| lines.iter().map(|line| line["termination"].clone()).collect())
    })
    .await;
    assert_eq!(codes, ["SF", "-", "-", "-", "-", "-", "SF", "SF"]);
    let line = &site.home.access_log()[0];
    assert_eq!((&line["backend"], &line["status"], &line["bytes"]), (&"blue".into(), &200.into(), &8.into()));
    assert!(line.get("endpoint").is_none_or(serde_json::Value::is_null), "{line}");
    let metrics = site.proxy.client.metrics().await.unwrap();
    let redirects =
        metrics.lines().find(|line| line.contains("_requests_total{") && line.contains("\"308\""));
    assert!(redirects.is_some_and(|line| line.contains("\"blue\"") && line.ends_with(" 1")), "{metrics}");
}

#[tokio::test]
async fn only_files_are_served_where_the_app_is_not_to_be_asked() {
    let site = Site::start(&format!("{FILES}\nfiles_only = true")).await;
    site.put("blue", "a.txt", "a");
    let mut wire = site.wire().await;
    let missing = wire.get("/headers").await;
    assert_eq!((missing.status, missing.header("x-backend")), (404, None));
    wire.send("OPTIONS /a.txt HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let refused = wire.response().await;
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")));
    wire.send("POST /a.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(wire.response().await.status, 405);
}

#[tokio::test]
async fn an_app_that_routes_in_the_browser_gets_its_page_for_navigations_alone() {
    let site = Site::start(&format!("{FILES}\nspa = \"/index.html\"")).await;
    site.put("blue", "index.html", "<div id=app>");
    site.put("blue", "app.js", "run()");
    let mut wire = site.wire().await;
    let mut ask = async |path: &str, fields: &str| {
        wire.send(asking(path, fields)).await;
        wire.response().await
    };
    const BROWSER: &str = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    for path in ["/", "/users/7", "/users/7?tab=a", "/no/such/page.html"] {
        let page = ask(path, BROWSER).await;
        assert_eq!((page.status, page.text().as_str()), (200, "<div id=app>"), "{path}");
        assert!(page.header("etag").is_some());
    }
    assert_eq!(ask("/app.js", BROWSER).await.text(), "run()");
    for fields in ["Accept: */*", "Accept: application/json", "A: b", "Accept: image/png,*/*"] {
        let of_app = ask("/users/7", fields).await;
        assert!(of_app.header("x-backend").is_some(), "{fields}: {}", of_app.head);
    }
}

#[tokio::test]
async fn a_root_that_is_missing_is_reported_and_the_app_answers() {
    let site = Site::start(FILES).await;
    fs::remove_dir_all(site.root("blue")).unwrap();
    let mut wire = site.wire().await;
    assert!(wire.get("/logo.txt").await.header("x-backend").is_some());
    site.home.until_said("cannot open the directory of files").await;
    // It may be put there at any time, as by a symbolic link.
    fs::create_dir_all(site.home.path("release/public")).unwrap();
    fs::write(site.home.path("release/public/logo.txt"), "new").unwrap();
    symlink("../release/public", site.root("blue")).unwrap();
    assert_eq!(wire.get("/logo.txt").await.text(), "new");
}

/// Rules differ in their roots, and what is below their match is looked up there.
#[tokio::test]
async fn a_rule_looks_up_what_is_below_its_match() {
    let rules = "[[services.app.paths]]\nmatch = [\"/static\", \"/static/v2\", \"/img/\"]\n\
                 files = \"FILES\"\nfiles_only = true\n\
                 [[services.app.paths]]\nmatch = \"/static/none\"\nfiles = \"off\"\n\
                 [[services.app.paths]]\nmatch = [\"/icons/a.txt\", \"/b.txt\"]\nexact = true\n\
                 files = \"FILES\"\nfiles_only = true\n";
    let site = Site::start(rules).await;
    site.put("blue", "a.txt", "a");
    let mut wire = site.wire().await;
    for (path, status) in [
        ("/static/a.txt", 200),
        ("/static/v2/a.txt", 200),
        ("/img/a.txt", 200),
        ("/icons/a.txt", 200),
        ("/b.txt", 404),
        ("/static", 404),
        ("/static/static/a.txt", 404),
        ("/staticx/a.txt", 404),
        ("/static/../img/a.txt", 404),
    ] {
        assert_eq!(wire.get(path).await.status, status, "{path}");
    }
    let of_app = wire.get("/static/none/a.txt").await;
    assert!(of_app.header("x-backend").is_some(), "{}", of_app.head);
}
