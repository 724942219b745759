//! Requests to the Hub. Redirects are followed here, so that the token goes to no other server.

use std::{io::Read, time::Duration};
use ureq::{Agent, AgentBuilder, Error, ErrorKind, RequestUrl, Response};

const HUGGING_FACE: &str = "https://huggingface.co";

pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// What the server says about a file.
pub(super) struct Head {
    pub(super) commit: String,
    pub(super) etag: String,
    pub(super) length: u64,
    /// The hash of the content, if the server tells it.
    pub(super) sha256: Option<String>,
}

pub(super) enum Answer {
    File(Head, Box<dyn Read + Send + Sync>),
    /// There is no such file, maybe in this commit.
    Absent(Option<String>),
}

impl Answer {
    pub(super) fn commit(&self) -> Option<&String> {
        match self {
            Answer::File(head, _) => Some(&head.commit),
            Answer::Absent(commit) => commit.as_ref(),
        }
    }
}

/// A request that failed.
pub(super) struct RequestError {
    pub(super) reason: String,
    /// What to do; `None` if the request may be tried again.
    pub(super) hint: Option<&'static str>,
    /// Whether the server refuses everything: what the cache has may still be used.
    pub(super) is_refusal: bool,
}

impl RequestError {
    fn last(reason: impl Into<String>, hint: &'static str) -> Self {
        Self { reason: reason.into(), hint: Some(hint), is_refusal: false }
    }

    fn passing(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: None, is_refusal: false }
    }
}

const OTHER_SERVER: &str = "check HF_ENDPOINT, or give the path of a folder";

impl Client {
    pub(super) fn new(endpoint: Option<&str>, token: Option<&str>) -> Self {
        let agent = AgentBuilder::new()
            .try_proxy_from_env(true)
            .redirects(0)
            .timeout_connect(Duration::from_secs(30))
            .timeout_read(Duration::from_secs(60))
            .user_agent(concat!("reft/", env!("CARGO_PKG_VERSION")))
            .build();
        let endpoint = endpoint.unwrap_or(HUGGING_FACE).trim_end_matches('/').to_string();
        Self { agent, endpoint, token: token.map(str::to_string) }
    }

    /// Requests a file of a model.
    pub(super) fn get(&self, name: &str, revision: &str, file: &str) -> Result<Answer, RequestError> {
        const MAX_REDIRECTS: usize = 10;
        let mut url = format!("{}/{name}/resolve/{}/{file}", self.endpoint, revision.replace('/', "%2F"));
        let server = self.origin(&url)?;
        // The server itself tells about the file, even if it redirects to another one for the content.
        let mut told = Told::default();
        for _ in 0..MAX_REDIRECTS {
            let is_server = self.origin(&url)? == server;
            let response = match self.call(&url, is_server)? {
                Ok(response) => response,
                Err(absent) => return Ok(absent),
            };
            if is_server {
                told.read(&response);
            }
            if !(300..400).contains(&response.status()) {
                return told.into_answer(response);
            }
            let location = response.header("Location").unwrap_or_default();
            url = target(&server, is_server, location, &url)?;
        }
        Err(RequestError::last(format!("more than {MAX_REDIRECTS} redirects"), OTHER_SERVER))
    }

    /// The inner `Err` is the answer to a file that does not exist.
    fn call(&self, url: &str, with_token: bool) -> Result<Result<Response, Answer>, RequestError> {
        // Compressed bodies have another length.
        let mut request = self.agent.get(url).set("Accept-Encoding", "identity");
        if let Some(token) = self.token.as_ref().filter(|_| with_token) {
            if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                let reason = "the token has characters that no token has";
                return Err(RequestError::last(reason, "set HF_TOKEN to the token from your account's page"));
            }
            request = request.set("Authorization", &format!("Bearer {token}"));
        }
        match request.call() {
            Ok(response) => Ok(Ok(response)),
            Err(Error::Status(404, response)) => Ok(Err(Answer::Absent(header(&response, "X-Repo-Commit")))),
            Err(Error::Status(status, _)) => Err(refusal(status, self.token.is_some())),
            Err(Error::Transport(error)) => {
                let reason = format!("{url}: {error}");
                Err(match error.kind() {
                    ErrorKind::InvalidUrl | ErrorKind::UnknownScheme | ErrorKind::InvalidProxyUrl => {
                        RequestError::last(reason, OTHER_SERVER)
                    }
                    _ => RequestError::passing(reason),
                })
            }
        }
    }

    /// Scheme, host and port of a URL.
    fn origin(&self, url: &str) -> Result<String, RequestError> {
        let parsed = self.agent.get(url).request_url();
        let show = |url: RequestUrl| match url.port() {
            Some(port) => format!("{}://{}:{port}", url.scheme(), url.host()),
            None => format!("{}://{}", url.scheme(), url.host()),
        };
        parsed.map(show).map_err(|error| RequestError::last(format!("{url}: {error}"), OTHER_SERVER))
    }
}

fn refusal(status: u16, has_token: bool) -> RequestError {
    let reason = format!("the server answered with the status {status}");
    let error = match (status, has_token) {
        (401 | 403, false) => RequestError::last(
            reason,
            "if the model is gated or private, accept its license on its page and set HF_TOKEN; if not, check its name",
        ),
        (401 | 403, true) => RequestError::last(
            reason,
            "accept the model's license on its page, and check that HF_TOKEN may read it; if it has none, check its name",
        ),
        (429, _) => {
            RequestError::last(reason, "there were too many requests; wait some minutes, or set HF_TOKEN")
        }
        (500.., _) => RequestError::passing(reason),
        _ => RequestError::last(reason, "check the name, or give the path of a folder"),
    };
    RequestError { is_refusal: [401, 403, 429].contains(&status), ..error }
}

/// Where a redirect leads.
fn target(server: &str, is_server: bool, location: &str, from: &str) -> Result<String, RequestError> {
    if location.starts_with('/') && !location.starts_with("//") && is_server {
        return Ok(format!("{server}{location}"));
    }
    let downgrade = from.starts_with("https:") && !location.starts_with("https:");
    if downgrade || !(location.starts_with("https://") || location.starts_with("http://")) {
        let shown: String = location.chars().take(200).collect();
        return Err(RequestError::last(format!("the server redirects to {shown:?}"), OTHER_SERVER));
    }
    Ok(location.into())
}

fn header(response: &Response, name: &str) -> Option<String> {
    response.header(name).map(str::to_string)
}

/// What the server has told so far.
#[derive(Default)]
struct Told {
    commit: Option<String>,
    linked_etag: Option<String>,
    etag: Option<String>,
    linked_size: Option<String>,
}

impl Told {
    fn read(&mut self, response: &Response) {
        let newer = |name: &str, old: &mut Option<String>| {
            if let Some(value) = header(response, name) {
                *old = Some(value);
            }
        };
        newer("X-Repo-Commit", &mut self.commit);
        newer("X-Linked-Etag", &mut self.linked_etag);
        newer("ETag", &mut self.etag);
        newer("X-Linked-Size", &mut self.linked_size);
    }

    fn into_answer(self, response: Response) -> Result<Answer, RequestError> {
        let lacks =
            |what: &str| RequestError::last(format!("the server does not tell the {what}"), OTHER_SERVER);
        let number = |text: Option<String>| text.and_then(|text| text.trim().parse::<u64>().ok());
        let clean = |etag: String| etag.trim().trim_start_matches("W/").trim_matches('"').to_string();
        if response.status() != 200 {
            return Err(refusal(response.status(), false));
        }
        let commit = self.commit.ok_or_else(|| lacks("commit"))?;
        let linked = self.linked_etag.map(clean);
        let etag = linked.clone().or(self.etag.map(clean)).ok_or_else(|| lacks("ETag"))?;
        let length = number(header(&response, "Content-Length")).ok_or_else(|| lacks("length"))?;
        if let Some(size) = number(self.linked_size)
            && size != length
        {
            let reason = format!("the server sends {length} bytes, but tells the size {size}");
            return Err(RequestError::last(reason, OTHER_SERVER));
        }
        // Only the ETag of a large file is the hash of its content.
        let is_sha256 = |etag: &String| etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
        let sha256 = linked.filter(is_sha256).map(|hash| hash.to_lowercase());
        Ok(Answer::File(Head { commit, etag, length, sha256 }, response.into_reader()))
    }
}
