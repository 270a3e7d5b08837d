//! One health probe over an open stream, as uh-proxy and uh-deploy make it: one request, one answer. The caller connects,
//! sets the deadline, and judges.

use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Address;

/// A health body is small. Of an answer with a larger one, only the head is used.
const MAX_BODY_BYTES: usize = 64 << 10;

/// Why a probe got no answer.
pub type ProbeError = Box<dyn std::error::Error + Send + Sync>;

/// What a probe asks for.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    /// The path.
    pub path: &'a str,
    /// `Host`; `None`: the endpoint's address.
    pub host: Option<&'a str>,
    /// Other fields. They replace those that a probe sets itself.
    pub headers: &'a [(HeaderName, HeaderValue)],
    /// `User-Agent`, with a version.
    pub agent: &'static str,
}

/// The answer to a probe.
#[derive(Debug)]
pub struct ProbeAnswer {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body; empty if it is too large.
    pub body: Bytes,
}

impl Probe<'_> {
    /// Asks the endpoint that this stream is connected to, and closes the stream.
    ///
    /// # Errors
    /// There was no complete answer.
    pub async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send,
        endpoint: &Address,
    ) -> Result<ProbeAnswer, ProbeError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = self.request(endpoint)?;
        let answer = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) if error.is::<LengthLimitError>() => Bytes::new(),
                Err(error) => return Err(error),
            };
            Ok::<_, ProbeError>(ProbeAnswer { status: head.status, headers: head.headers, body })
        };
        tokio::pin!(answer, connection);
        tokio::select! {
            answer = &mut answer => answer,
            // However the connection ended, the answer may be complete.
            _ = &mut connection => answer.await,
        }
    }

    fn request(&self, endpoint: &Address) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
        let host = match (self.host, endpoint) {
            (Some(host), _) => host.to_owned(),
            (None, Address::Unix(_)) => "localhost".to_owned(),
            (None, endpoint) => endpoint.to_string(),
        };
        let request = Request::get(self.path).header(HOST, host).header(USER_AGENT, self.agent);
        let mut request = request.header(CONNECTION, "close").body(Empty::new())?;
        for (name, value) in self.headers {
            request.headers_mut().insert(name, value.clone());
        }
        Ok(request)
    }
}
