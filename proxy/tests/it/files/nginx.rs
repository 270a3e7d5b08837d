//! The same requests to nginx and to uh-proxy, over the same directory. What differs is listed in docs/files.md.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};

use uh_testkit::wait::free_port;

use super::{FILES, Site, asking};
use crate::harness::until;
use crate::wire::{Response, Wire};

struct Nginx {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Nginx {
    /// `None`: there is no nginx here.
    fn start(root: &std::path::Path) -> Option<Self> {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let at = dir.path().display();
        let config = format!(
            "daemon off;\npid {at}/pid;\nerror_log {at}/error.log;\nevents {{}}\nhttp {{\n\
             types {{ text/html html; text/css css; text/plain txt; application/javascript js; }}\n\
             default_type application/octet-stream;\naccess_log off;\n\
             client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; \
             uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
             server {{ listen 127.0.0.1:{port}; root {}; gzip_static on; \
             location / {{ try_files $uri $uri/ =404; }} }}\n}}\n",
            root.display()
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        // The workers of a master that is root run as another user, who must reach the files.
        let mut above = Some(root);
        while let Some(folder) = above.filter(|folder| *folder != std::env::temp_dir()) {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            let _ = fs::set_permissions(folder, mode);
            above = folder.parent();
        }
        let child =
            Command::new("nginx").args(["-c", &format!("{at}/nginx.conf")]).stderr(Stdio::null()).spawn();
        child.ok().map(|child| Self { child, port, _dir: dir })
    }

    async fn wire(&self) -> Wire {
        let address = ([127, 0, 0, 1], self.port).into();
        until("nginx listens", async || tokio::net::TcpStream::connect(address).await.ok()).await;
        Wire::connect(address).await
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its worker ends with it.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// What must be alike: status, body of a file, and what caches go by.
fn essence(response: &Response) -> (u16, Vec<u8>, [Option<String>; 4]) {
    let of_file = matches!(response.status, 200 | 206);
    let field = |name: &str| response.header(name).filter(|_| of_file).map(str::to_owned);
    let fields = ["content-length", "content-range", "content-encoding", "last-modified"].map(field);
    (response.status, if of_file { response.body.clone() } else { Vec::new() }, fields)
}

#[tokio::test]
async fn requests_get_what_nginx_would_send() {
    let site = Site::start(&format!("{FILES}\nfiles_only = true\nprecompressed = true")).await;
    let root = site.root("blue");
    let Some(nginx) = Nginx::start(&root) else {
        println!("skipped: there is no nginx here");
        return;
    };
    for (name, content) in [
        ("index.html", "<p>index"),
        ("a.txt", "0123456789"),
        ("empty.txt", ""),
        ("a b.txt", "space"),
        ("app.js", "plain"),
        ("app.js.gz", "gzip"),
        ("dir/index.html", "<p>dir"),
        ("dir/x.txt", "x"),
        ("no-index/x.txt", "x"),
        (".env", "SECRET"),
    ] {
        site.put("blue", name, content);
    }
    fs::write(site.home.path("outside.txt"), "outside").unwrap();
    symlink("a.txt", root.join("link.txt")).unwrap();
    symlink("../../outside.txt", root.join("out.txt")).unwrap();
    // nginx closes after some answers: a connection for each.
    let both = async |request: &str| {
        let (mut ours, mut theirs) = (site.wire().await, nginx.wire().await);
        ours.send(request).await;
        theirs.send(request).await;
        (ours.response().await, theirs.response().await)
    };
    let date = nginx.wire().await.get("/a.txt").await.header("last-modified").unwrap().to_owned();
    let alike = [
        "/|A: b",
        "/a.txt|A: b",
        "/a.txt?x=y|A: b",
        "/a%2Etxt|A: b",
        "/a%20b.txt|A: b",
        "/empty.txt|A: b",
        "/dir/|A: b",
        "/dir/x.txt|A: b",
        "/link.txt|A: b",
        "/missing|A: b",
        "/missing/|A: b",
        "/no-index/x.txt|A: b",
        "/a.txt/|A: b",
        "/app.js|Accept-Encoding: gzip",
        "/app.js|Accept-Encoding: gzip;q=0",
        "/app.js|A: b",
        "/app.js|Accept-Encoding: br",
        "/a.txt|Range: bytes=0-0",
        "/a.txt|Range: bytes=5-",
        "/a.txt|Range: bytes=-3",
        "/a.txt|Range: bytes=8-100",
        "/a.txt|Range: bytes=10-",
        "/a.txt|Range: bytes=100-200",
        "/a.txt|Range: lines=1-2",
        "/a.txt|If-None-Match: *",
        "/a.txt|If-None-Match: \"x\"",
        "/a.txt|If-Match: \"x\"",
        "/a.txt|If-Match: *",
        "/a.txt|If-Modified-Since: DATE",
        "/a.txt|If-Modified-Since: Wed, 01 Jan 2098 00:00:00 GMT",
        "/a.txt|If-Unmodified-Since: Wed, 01 Jan 2020 00:00:00 GMT",
        "/a.txt|If-Unmodified-Since: DATE",
        "/a.txt|Range: bytes=0-0\r\nIf-Range: \"x\"",
        "/a.txt|Range: bytes=1-2\r\nIf-None-Match: \"x\"",
    ];
    // Each with what uh-proxy sends, and what nginx sends.
    let differ = [
        ("/a.txt|Range: bytes=0-0,5-6", 200, 206),
        ("/dir/../a.txt|A: b", 404, 200),
        ("//a.txt|A: b", 404, 200),
        ("/dir%2Fx.txt|A: b", 404, 200),
        ("/.env|A: b", 404, 200),
        ("/out.txt|A: b", 404, 200),
        ("/dir|A: b", 308, 301),
        ("/no-index/|A: b", 404, 403),
    ];
    for request in alike {
        let (path, field) = request.split_once('|').unwrap();
        let (ours, theirs) = both(&asking(path, &field.replace("DATE", &date))).await;
        assert_eq!(essence(&ours), essence(&theirs), "{request}\n{}\n{}", ours.head, theirs.head);
    }
    for (request, of_us, of_nginx) in differ {
        let (path, field) = request.split_once('|').unwrap();
        let (ours, theirs) = both(&asking(path, field)).await;
        assert_eq!((ours.status, theirs.status), (of_us, of_nginx), "{request}");
    }
}
