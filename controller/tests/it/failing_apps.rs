//! Apps that fail on purpose. They are Python programs, and have a port from the environment.

/// What is appended to the path of an app, for the file that ends its late requests.
pub(crate) const LATE: &str = ".late";

/// What is appended to the path of an app and a dot and its port, for the file that makes its health path fail.
pub(crate) const SICK: &str = ".sick";

/// An app that answers with 500 where `bad`, a Python expression, is true, except at its health path, which fails while its
/// [`SICK`] is there. `first` are lines before. A request for `/late` waits until [`LATE`] is there, and fails then.
fn failing_app(first: &str, bad: &str) -> String {
    format!(
        r#"
import http.server, itertools, os, sys, time

def is_late():
    while not os.path.exists(sys.argv[0] + "{LATE}"):
        time.sleep(0.2)
    return True

requests = itertools.count(1)
{first}
class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/api/health":
            bad = os.path.exists(sys.argv[0] + "." + os.environ["PORT"] + "{SICK}")
        else:
            bad = self.path == "/late" and is_late() or ({bad})
        self.send_response(500 if bad else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass

# By default five connections may wait, and what a further one sends is lost until it is sent again: for up to a minute.
http.server.ThreadingHTTPServer.request_queue_size = 1024
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App).serve_forever()
"#
    )
}

/// Fails as long as the file of its first argument is there.
pub(crate) fn turns_bad() -> String {
    failing_app("", "os.path.exists(sys.argv[1])")
}

/// Fails every tenth request.
pub(crate) fn wavers() -> String {
    failing_app("", "next(requests) % 10 == 0")
}

/// Fails this share of its requests, in percent: its second argument, or what is in the file that the first one names.
/// Several versions may have the same file, as they may have the same database.
pub(crate) fn fails_a_share() -> String {
    let first = "
def percent():
    try:
        return max(int(sys.argv[2]), int(open(sys.argv[1]).read()))
    except (OSError, ValueError):
        return int(sys.argv[2])

def is_bad(n, p):
    return n * p // 100 > (n - 1) * p // 100
";
    failing_app(first, "is_bad(next(requests), percent())")
}
