//! What is sent to nginx and to uh-proxy, and the known differences.

/// A fixture, its host, the addresses in it that stand for the first, second and third app, and requests.
pub(super) struct Case {
    pub(super) fixture: &'static str,
    pub(super) host: &'static str,
    pub(super) apps: [&'static [&'static str]; 3],
    pub(super) requests: &'static [&'static str],
}

pub(super) const CASES: [Case; 18] = [
    Case {
        fixture: "several_apps",
        host: "apps.example.com",
        apps: [&["frontend:3000"], &["api:8000"], &["admin:9000"]],
        requests: &[
            "GET /",
            "GET /x/y?q=1",
            "GET /api/users",
            "GET /api/reports/1",
            "GET /admin/",
            "GET /admin/users?p=2",
            "GET /api/auth/me",
            "GET /apis",
            "GET /admin",
            "POST /api/users",
        ],
    },
    Case {
        fixture: "sse",
        host: "events.example.com",
        apps: [&["127.0.0.1:3000"], &[], &[]],
        requests: &["GET /", "GET /events", "GET /events/1", "GET /eventsource"],
    },
    Case {
        fixture: "uploads",
        host: "files.example.com",
        apps: [&["127.0.0.1:3000"], &[], &[]],
        requests: &["GET /", "POST / 2000000", "POST /api/upload 3000000000", "POST / 10"],
    },
    Case {
        fixture: "compose_blue_green",
        host: "any.example.com",
        apps: [&["app-blue:3008"], &["app-green:3008"], &[]],
        requests: &["GET /", "GET /a%20b/../c?d=%2f", "GET //double", "HEAD /x", "DELETE /x"],
    },
    Case {
        fixture: "blue_green_upstreams",
        host: "app.example.com",
        apps: [&["127.0.0.1:3008"], &["127.0.0.1:3009"], &[]],
        requests: &["GET /", "GET /x?y=z"],
    },
    Case {
        fixture: "replaced_prefix",
        host: "api.example.com",
        apps: [&["127.0.0.1:3000"], &["127.0.0.1:3001"], &["127.0.0.1:3002"]],
        requests: &[
            "GET /v1/users",
            "GET /same/x?y",
            "GET /strip/",
            "GET /strip/a/b?c",
            "GET /rewritten/x",
            "GET /none",
        ],
    },
    Case {
        fixture: "regex_lists",
        host: "lists.example.com",
        apps: [&["127.0.0.1:3000"], &["127.0.0.1:3001"], &["127.0.0.1:3002"]],
        requests: &[
            "GET /",
            "GET /api/x",
            "GET /admin/",
            "GET /apis/x",
            "GET /metrics",
            "GET /metrics/x",
            "POST /api/x 60000000",
            "GET /user/12",
        ],
    },
    Case {
        fixture: "static_assets",
        host: "assets.example.com",
        apps: [&["127.0.0.1:3000"], &[], &[]],
        requests: &["GET /", "GET /app.js", "GET /deep/app.CSS?v=1", "GET /js"],
    },
    Case {
        fixture: "wordpress",
        host: "www.blog.example.com",
        apps: [&["127.0.0.1:8080"], &[], &[]],
        requests: &["GET /", "GET /wp-login.php", "GET /xmlrpc.php", "GET /missing"],
    },
    Case {
        fixture: "answers",
        host: "answers.example.com",
        apps: [&["127.0.0.1:3000"], &[], &[]],
        requests: &[
            "GET /",
            "GET /health",
            "GET /old?a=b",
            "GET /moved?a=b",
            "GET /favicon.ico",
            "GET /.git/config",
        ],
    },
    Case {
        fixture: "cors",
        host: "cors.example.com",
        apps: [&["127.0.0.1:3000"], &[], &[]],
        requests: &["GET /api", "GET /api/missing"],
    },
    Case {
        fixture: "files",
        host: "shop.example.com",
        apps: [&["127.0.0.1:3000"], &[], &[]],
        requests: &[
            "GET / page",
            "GET /index.html",
            "GET /docs/ page",
            "GET /deep/link page",
            "GET /deep/link",
            "GET /assets/app.html",
            "HEAD /assets/app.html",
            "GET /assets/none.html",
            "GET /static/logo.html",
            "GET /static/none.html",
            "GET /api/users?a=b",
            "POST /api/users",
        ],
    },
    Case {
        fixture: "files_then_app",
        host: "rails.example.com",
        apps: [&["127.0.0.1:3000"], &[], &[]],
        requests: &[
            "GET /",
            "GET /docs/",
            "GET /assets/app.html",
            "GET /users/1",
            "GET /missing",
            "POST /users",
        ],
    },
    Case {
        fixture: "gzip_paths",
        host: "packed.example.com",
        apps: [&["127.0.0.1:3000"], &[], &[]],
        requests: &[
            "GET /short gzip",
            "GET /large gzip",
            "GET /large",
            "GET /large.css gzip",
            "GET /large.svg gzip",
            "GET /missing/large gzip",
            "GET /raw/large gzip",
            "GET /long/large gzip",
            "GET /long/larger gzip",
            "GET /long/larger.svg gzip",
            "GET /long/larger.css gzip",
        ],
    },
    Case {
        fixture: "rate_limits",
        host: "limited.example.com",
        apps: [&["127.0.0.1:3000"], &[], &[]],
        requests: &[
            "GET /",
            "GET /api/x",
            "POST /login",
            "POST /login",
            "POST /login",
            "POST /login",
            "POST /login",
            "POST /login",
            "POST /login",
            "GET /api/x",
            "GET /",
        ],
    },
    Case {
        fixture: "allow_deny",
        host: "internal.example.com",
        apps: [&["127.0.0.1:3000"], &[], &[]],
        requests: &["GET /", "GET /metrics"],
    },
    Case {
        fixture: "security_headers",
        host: "headers.example.com",
        apps: [&["127.0.0.1:3000"], &[], &[]],
        requests: &["GET /", "GET /missing"],
    },
    Case {
        fixture: "grafana",
        host: "grafana.example.com",
        apps: [&["127.0.0.1:3000"], &[], &[]],
        requests: &["GET /", "GET /api/live/ws upgrade", "GET /d/abc?orgId=1"],
    },
];

/// Files below `/srv/shop`, with different lengths.
pub(super) const FILES: [(&str, &str); 4] = [
    ("public/index.html", "index"),
    ("public/docs/index.html", "the docs"),
    ("public/assets/app.html", "one asset"),
    ("static/logo.html", "a logo"),
];

/// A known difference.
#[derive(Debug)]
pub(super) struct Difference {
    pub(super) fixture: &'static str,
    /// `*`: any.
    pub(super) request: &'static str,
    /// What differs; `*`: anything.
    pub(super) names: &'static [&'static str],
    pub(super) why: &'static str,
}

const fn differs(
    fixture: &'static str,
    request: &'static str,
    names: &'static [&'static str],
    why: &'static str,
) -> Difference {
    Difference { fixture, request, names, why }
}

const NOT_CARRIED: &str = "the import reports that this directive changes behaviour";

const UTF_8: &str = "files with text are UTF-8";

pub(super) const DIFFERENCES: [Difference; 9] = [
    differs(
        "several_apps",
        "GET /admin",
        &["*"],
        "nginx redirects a prefix without its slash; here it belongs to the service",
    ),
    differs("regex_lists", "GET /user/12", &["app", "Host"], NOT_CARRIED),
    differs(
        "wordpress",
        "GET /missing",
        &["X-Content-Type-Options"],
        "without always, nginx adds a field only to a success; here it is set for every status",
    ),
    differs("answers", "GET /old?a=b", &["Location"], "nginx sends a whole address, uh-proxy the path"),
    differs("answers", "GET /moved?a=b", &["Location"], "nginx sends a whole address, uh-proxy the path"),
    differs(
        "files",
        "GET /deep/link",
        &["*"],
        "spa answers navigations; other requests without a file get 404",
    ),
    differs("files", "*", &["Content-Type"], UTF_8),
    differs("files_then_app", "*", &["Content-Type"], UTF_8),
    differs("answers", "GET /.git/config", &["*"], NOT_CARRIED),
];
