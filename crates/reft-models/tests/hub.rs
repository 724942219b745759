//! Downloads from a server on this machine that answers like the Hub, or as a hostile one would.

use reft_models::hub::Hub;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

struct Request {
    path: String,
    headers: BTreeMap<String, String>,
}

/// An answer: the status line and headers without the length, and the body.
struct Answer {
    head: String,
    length: Option<usize>,
    body: Vec<u8>,
    /// Whether the body is sent again and again, without an end.
    endless: bool,
}

impl Answer {
    fn status(status: &str) -> Self {
        Self { head: format!("HTTP/1.1 {status}"), length: Some(0), body: Vec::new(), endless: false }
    }

    fn file(file: &str, body: &[u8]) -> Self {
        let etag = format!("{}-{}", file.replace('.', "-"), body.len());
        Self::status("200 OK")
            .with("ETag", &format!("\"{etag}\""))
            .with("X-Repo-Commit", COMMIT)
            .with_body(body)
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        let start = format!("\r\n{name}: ");
        if let Some(at) = self.head.find(&start) {
            let end = self.head[at + 2..].find("\r\n").map_or(self.head.len(), |end| at + 2 + end);
            self.head.replace_range(at..end, "");
        }
        self.head += &format!("{start}{value}");
        self
    }

    fn with_body(self, body: &[u8]) -> Self {
        Self { length: Some(body.len()), body: body.into(), ..self }
    }

    fn send(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let length = self.length.map_or(String::new(), |length| format!("\r\nContent-Length: {length}"));
        write!(stream, "{}{length}\r\nConnection: close\r\n\r\n", self.head)?;
        stream.write_all(&self.body)?;
        if self.endless {
            // Until the client closes the connection.
            loop {
                stream.write_all(&self.body)?;
            }
        }
        stream.flush()?;
        // The client closes the connection, unless it waits for what does not come.
        if self.length.is_none_or(|length| length <= self.body.len()) {
            let _ = stream.read(&mut [0]);
        }
        Ok(())
    }
}

struct Server {
    endpoint: String,
    /// The requests so far, as `path [authorization]`.
    log: Arc<Mutex<Vec<String>>>,
}

/// Serves what `answer` returns, on threads that end with the test.
fn serve(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    let (seen, answer) = (log.clone(), Arc::new(answer));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (seen, answer) = (seen.clone(), answer.clone());
            thread::spawn(move || {
                let request = read(&stream)?;
                let token = request.headers.get("authorization").cloned().unwrap_or_default();
                seen.lock().ok()?.push(format!("{} {token}", request.path).trim().to_string());
                answer(&request).send(stream).ok()
            });
        }
    });
    Server { endpoint, log }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_string();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim().split_once(':') {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_string()),
            None => return Some(Request { path, headers }),
        };
    }
}

impl Request {
    /// The revision and the file, of `[owner/]model/resolve/revision/file`.
    fn target(&self) -> Option<(&str, &str)> {
        self.path.split_once("/resolve/")?.1.split_once('/')
    }
}

/// A server of a model with these files, at the revisions `main`, `refs/pr/1` and [`COMMIT`].
fn serve_files(files: BTreeMap<String, Vec<u8>>) -> Server {
    serve(move |request| answer_files(&files, request))
}

fn answer_files(files: &BTreeMap<String, Vec<u8>>, request: &Request) -> Answer {
    let known = |revision: &str| [COMMIT, "main", "refs%2Fpr%2F1"].contains(&revision);
    match request.target().filter(|(revision, _)| known(revision)) {
        Some((_, file)) if files.contains_key(file) => Answer::file(file, &files[file]),
        Some(_) => Answer::status("404 Not Found").with("X-Repo-Commit", COMMIT),
        None => Answer::status("404 Not Found"),
    }
}

/// A server that changes the answer for one file.
fn serve_changed(file: &'static str, change: impl Fn(Answer) -> Answer + Send + Sync + 'static) -> Server {
    let files = model_files();
    serve(move |request| {
        let answer = answer_files(&files, request);
        if request.target().is_some_and(|(_, name)| name == file) { change(answer) } else { answer }
    })
}

fn model_files() -> BTreeMap<String, Vec<u8>> {
    let file = |name: &str, text: &str| (name.to_string(), text.as_bytes().to_vec());
    BTreeMap::from([
        file("config.json", "{\"model_type\": \"llama\"}"),
        file("tokenizer.json", "{\"version\": \"1.0\"}"),
        file(
            "model.safetensors.index.json",
            "{\"weight_map\": {\"a\": \"model-1.safetensors\", \"b\": \"model-2.safetensors\"}}",
        ),
        file("model-1.safetensors", "first"),
        file("model-2.safetensors", "second"),
    ])
}

/// An access to the server with a cache in a folder of a test.
fn hub(server: &Server, folder: &Path) -> Hub {
    let endpoint = Some(format!("{}/", server.endpoint));
    Hub { cache: folder.join("a/b/c/cache"), offline: None, endpoint, token: None }
}

fn error(hub: &Hub, name: &str, revision: &str) -> String {
    hub.download(name, revision).expect_err("must be refused").to_string()
}

impl Server {
    fn requests(&self) -> Vec<String> {
        self.log.lock().expect("log").clone()
    }

    fn requested(&self, file: &str) -> bool {
        self.requests().iter().any(|request| request.ends_with(file))
    }
}

/// All files and links below a folder.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().expect("a type").is_dir() {
            paths.extend(tree(&entry.path()));
        } else {
            paths.push(entry.path());
        }
    }
    paths.sort();
    paths
}

/// Checks that nothing was written outside of the cache, and nothing half-written is left in it.
fn assert_contained(folder: &Path, case: &str) {
    let cache = folder.join("a/b/c/cache");
    for path in tree(folder) {
        assert!(path.starts_with(&cache), "{case}: {}", path.display());
        assert!(!path.display().to_string().ends_with(".incomplete"), "{case}: {}", path.display());
    }
}

#[test]
fn a_sharded_model_is_downloaded_once_and_then_works_offline() {
    let (server, folder) = (serve_files(model_files()), tempfile::tempdir().expect("a folder"));
    let hub = hub(&server, folder.path());
    let model = hub.download("some/model", "main").expect("downloaded");
    let repository = folder.path().join("a/b/c/cache/models--some--model");
    assert_eq!(model, repository.join("snapshots").join(COMMIT));
    assert_eq!(fs::read(model.join("model-1.safetensors")).expect("there"), b"first");
    assert_eq!(fs::read(model.join("model-2.safetensors")).expect("there"), b"second");
    assert_eq!(fs::read_to_string(repository.join("refs/main")).expect("there"), COMMIT);
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(model.join("config.json")).expect("a link"),
        Path::new("../../blobs/config-json-23")
    );
    let n_requests = server.requests().len();
    assert!(hub.has("some/model", "main") && !hub.has("other/model", "main") && !hub.has("../x", "main"));
    assert_eq!(hub.download("some/model", "main").expect("cached"), model);
    assert_eq!(hub.download("some/model", COMMIT).expect("cached"), model);
    let offline = Hub { offline: Some("HF_HUB_OFFLINE is \"1\"".into()), ..hub };
    assert_eq!(offline.download("some/model", "main").expect("cached"), model);
    assert_eq!(server.requests().len(), n_requests, "cached and absent files need no requests");
    assert_contained(folder.path(), "a good server");
}

#[test]
fn a_model_may_have_no_owner_and_a_revision_slashes() {
    let (server, folder) = (serve_files(model_files()), tempfile::tempdir().expect("a folder"));
    let model = hub(&server, folder.path()).download("plain-model", "refs/pr/1").expect("downloaded");
    let repository = folder.path().join("a/b/c/cache/models--plain-model");
    assert_eq!(model, repository.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repository.join("refs/refs/pr/1")).expect("there"), COMMIT);
    assert_eq!(server.requests()[0], "/plain-model/resolve/refs%2Fpr%2F1/config.json");
}

#[test]
fn all_files_are_of_one_commit() {
    // The branch moves after the first file.
    let files = model_files();
    let server = serve(move |request| {
        let answer = answer_files(&files, request);
        let moved =
            request.target().is_some_and(|(revision, file)| revision == "main" && file != "config.json");
        if moved { answer.with("X-Repo-Commit", "fedcba").with_body(b"newer") } else { answer }
    });
    let folder = tempfile::tempdir().expect("a folder");
    let model = hub(&server, folder.path()).download("some/model", "main").expect("downloaded");
    assert_eq!(fs::read(model.join("tokenizer.json")).expect("there"), model_files()["tokenizer.json"]);
    assert!(!folder.path().join("a/b/c/cache/models--some--model/snapshots/fedcba").exists());
}

#[test]
fn a_model_that_is_not_cached_is_an_error_offline() {
    let (server, folder) = (serve_files(model_files()), tempfile::tempdir().expect("a folder"));
    let hub = Hub { offline: Some("HF_HUB_OFFLINE is \"1\"".into()), ..hub(&server, folder.path()) };
    assert_eq!(
        error(&hub, "some/model", "main"),
        format!(
            "some/model: no such folder, and config.json (revision main) is not in the cache {}; HF_HUB_OFFLINE is \"1\": \
             unset it to download the file, or give the path of a folder",
            hub.cache.display()
        )
    );
    assert_eq!(server.requests(), [""; 0], "offline means no requests");
}

#[test]
fn refusals_of_the_server_say_what_to_do() {
    for (status, token, hint) in [
        ("401 Unauthorized", None, "accept its license on its page and set HF_TOKEN; if not, check its name"),
        (
            "403 Forbidden",
            Some("secret"),
            "and check that HF_TOKEN may read it; if it has none, check its name",
        ),
        ("429 Too Many Requests", None, "there were too many requests; wait some minutes, or set HF_TOKEN"),
        ("500 Internal Server Error", None, "check the name and the network, or give the path of a folder"),
    ] {
        let server = serve(move |_| Answer::status(status));
        let folder = tempfile::tempdir().expect("a folder");
        let hub = Hub { token: token.map(str::to_string), ..hub(&server, folder.path()) };
        let message = error(&hub, "some/model", "main");
        let begin = format!(
            "some/model: cannot download config.json (revision main): the server answered with the status {}; ",
            &status[..3]
        );
        assert!(message.starts_with(&begin) && message.ends_with(hint), "{message}");
        let attempts = if status.starts_with('5') { 3 } else { 1 };
        assert_eq!(server.requests().len(), attempts, "{status}");
        assert!(tree(folder.path()).is_empty());
    }
}

/// Whoever filled the cache may not have noted which files the model does not have.
#[test]
fn a_model_in_the_cache_is_found_though_the_server_refuses() {
    for status in ["401 Unauthorized", "403 Forbidden", "429 Too Many Requests"] {
        let (server, folder) = (serve_files(model_files()), tempfile::tempdir().expect("a folder"));
        let found = hub(&server, folder.path()).download("some/model", "main").expect("downloaded");
        let cache = hub(&server, folder.path()).cache;
        fs::remove_dir_all(cache.join("models--some--model/.no_exist")).expect("there");
        let refusing = serve(move |_| Answer::status(status));
        assert_eq!(hub(&refusing, folder.path()).download("some/model", "main").expect("cached"), found);
        assert!(!refusing.requests().is_empty(), "{status}");
    }
}

#[test]
fn a_gated_model_is_downloaded_with_the_token() {
    let files = model_files();
    let server = serve(move |request| match request.headers.get("authorization").map(String::as_str) {
        Some("Bearer secret") => answer_files(&files, request),
        _ => Answer::status("401 Unauthorized"),
    });
    let folder = tempfile::tempdir().expect("a folder");
    let hub = Hub { token: Some("secret".into()), ..hub(&server, folder.path()) };
    hub.download("gated/model", "main").expect("allowed");
    let hub = Hub { token: Some("two\nlines".into()), ..hub };
    assert!(error(&hub, "other/model", "main").contains("the token has characters that no token has"));
}

#[test]
fn missing_models_and_revisions_are_errors() {
    let expected = |name: &str, revision: &str| {
        format!(
            "{name}: cannot download config.json (revision {revision}): the model, the revision or this file does not \
             exist; check the name and the network, or give the path of a folder"
        )
    };
    let (server, folder) = (serve_files(BTreeMap::new()), tempfile::tempdir().expect("a folder"));
    assert_eq!(error(&hub(&server, folder.path()), "no/model", "main"), expected("no/model", "main"));
    let (server, folder) = (serve_files(model_files()), tempfile::tempdir().expect("a folder"));
    assert_eq!(error(&hub(&server, folder.path()), "some/model", "v9"), expected("some/model", "v9"));
}

#[test]
fn an_adapter_in_place_of_a_model_is_named() {
    let files = BTreeMap::from([("adapter_config.json".to_string(), b"{}".to_vec())]);
    let (server, folder) = (serve_files(files), tempfile::tempdir().expect("a folder"));
    assert_eq!(
        error(&hub(&server, folder.path()), "some/model", "main"),
        "some/model: cannot download config.json (revision main): it is an adapter of PEFT; give its base model as the \
         model, and a folder with the adapter's files as the adapter"
    );
}

#[test]
fn other_names_and_revisions_are_refused_without_a_request() {
    let (server, folder) = (serve_files(model_files()), tempfile::tempdir().expect("a folder"));
    let hub = hub(&server, folder.path());
    for name in [
        "../etc",
        "some/../model",
        "some/model/x",
        "/some/model",
        "some/",
        "",
        ".",
        "a--b",
        "a..b",
        "./a",
        "a b",
    ] {
        assert_eq!(
            error(&hub, name, "main"),
            format!(
                "{name}: no such folder, and not a name on the Hub, which has the form `owner/model` or `model`"
            )
        );
    }
    for revision in ["../../x", "", "/x", "a//b", ".x", "a\\b", "a/../b"] {
        let message = error(&hub, "some/model", revision);
        assert!(message.starts_with(&format!("some/model: has no revision {revision:?}; ")), "{message}");
    }
    assert_eq!(server.requests(), [""; 0]);
    assert!(tree(folder.path()).is_empty());
}

/// File names become paths in the cache, so an index with a path is refused before any shard is downloaded.
#[test]
fn an_index_that_names_paths_is_refused() {
    for shard in ["../../x", "../../../../../../pwned/evil.safetensors", "/tmp/x", "a/b", "..", ".hidden", ""]
    {
        let mut files = model_files();
        let index = format!(r#"{{"weight_map": {{"a": "model-1.safetensors", "z": "{shard}"}}}}"#);
        files.insert("model.safetensors.index.json".into(), index.into_bytes());
        let (server, folder) = (serve_files(files), tempfile::tempdir().expect("a folder"));
        assert_eq!(
            error(&hub(&server, folder.path()), "some/model", "main"),
            format!(
                "some/model: model.safetensors.index.json names the file {shard:?}; expected a name of letters, digits, \
                 `.`, `_` and `-` that does not start with a dot"
            )
        );
        assert!(server.requested("/model.safetensors.index.json"));
        assert!(!server.requested("/model-1.safetensors"), "{shard:?}: no shard is downloaded");
        assert!(!server.requested("x"), "{shard:?}: {:?}", server.requests());
        assert_contained(folder.path(), shard);
    }
}

#[test]
fn an_etag_or_commit_that_is_a_path_is_refused_before_anything_is_written() {
    for header in ["ETag", "X-Linked-Etag", "X-Repo-Commit"] {
        for value in ["../../../../victim.txt", "/tmp/victim", "..", ".x", "a/b", "a\\b", "", "C:x", "\"\""] {
            let server = serve_changed("config.json", move |answer| answer.with(header, value));
            let folder = tempfile::tempdir().expect("a folder");
            let victim = folder.path().join("a/b/c/victim.txt");
            fs::create_dir_all(folder.path().join("a/b/c")).expect("created");
            fs::write(&victim, "precious").expect("written");
            let message = error(&hub(&server, folder.path()), "some/model", "main");
            let what = if header == "X-Repo-Commit" { "commit" } else { "ETag" };
            assert!(message.starts_with(&format!("some/model: the server's {what} is \"")), "{message}");
            assert_eq!(tree(folder.path()), std::slice::from_ref(&victim), "{header}: {value}");
            assert_eq!(fs::read_to_string(victim).expect("there"), "precious");
        }
    }
}

#[test]
fn redirects_are_followed_without_the_token() {
    let other = serve(|request| Answer::status("200 OK").with_body(request.path.as_bytes()));
    let content = format!("{}/content", other.endpoint);
    let server = {
        let content = content.clone();
        serve_changed("model-1.safetensors", move |_| {
            Answer::status("302 Found")
                .with("Location", &content)
                .with("X-Repo-Commit", COMMIT)
                .with("X-Linked-Etag", "\"large\"")
                .with("X-Linked-Size", "8")
        })
    };
    let folder = tempfile::tempdir().expect("a folder");
    let hub = Hub { token: Some("secret".into()), ..hub(&server, folder.path()) };
    let model = hub.download("some/model", "main").expect("downloaded");
    assert_eq!(fs::read(model.join("model-1.safetensors")).expect("there"), b"/content");
    assert_eq!(other.requests(), ["/content"], "no token");
    assert!(server.requests().iter().all(|request| request.ends_with("Bearer secret")));
}

#[test]
fn redirects_that_lead_nowhere_are_refused() {
    for (location, reason) in [
        ("/some/model/resolve/main/config.json", "more than 10 redirects"),
        ("file:///etc/passwd", "the server redirects to \"file:///etc/passwd\""),
        ("", "the server redirects to \"\""),
        ("//other/x", "the server redirects to \"//other/x\""),
        ("http://", "http://: Bad URL"),
    ] {
        let server = serve_changed("config.json", move |_| {
            Answer::status("302 Found").with("Location", location).with("X-Repo-Commit", COMMIT)
        });
        let folder = tempfile::tempdir().expect("a folder");
        let message = error(&hub(&server, folder.path()), "some/model", "main");
        let begin = format!("some/model: cannot download config.json (revision main): {reason}");
        assert!(message.starts_with(&begin), "{message}");
        assert!(tree(folder.path()).is_empty(), "{location}");
    }
}

#[test]
fn bodies_of_another_length_are_refused() {
    let wrong_length = |answer: Answer, length: Option<usize>| Answer { length, ..answer };
    type Change = Box<dyn Fn(Answer) -> Answer + Send + Sync>;
    let cases: [(Change, &str); 6] = [
        (
            Box::new(move |answer| wrong_length(answer, Some(1000))),
            "the connection ended after 5 of 1000 bytes: ",
        ),
        (Box::new(move |answer| wrong_length(answer, None)), "the server does not tell the length; "),
        (
            Box::new(|answer| answer.with("X-Linked-Size", "4")),
            "the server sends 5 bytes, but tells the size 4; ",
        ),
        (
            Box::new(move |answer| Answer { endless: true, ..wrong_length(answer, None) }),
            "the server does not tell the length; ",
        ),
        (
            Box::new(|answer| answer.with("X-Linked-Etag", &"a".repeat(64))),
            "the SHA-256 of what the server sent is a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e, ",
        ),
        (Box::new(|_| Answer::status("204 No Content")), "the server answered with the status 204; "),
    ];
    for (change, reason) in cases {
        let server = serve_changed("model-1.safetensors", change);
        let folder = tempfile::tempdir().expect("a folder");
        let message = error(&hub(&server, folder.path()), "some/model", "main");
        let begin = format!("some/model: cannot download model-1.safetensors (revision main): {reason}");
        assert!(message.starts_with(&begin), "{message}");
        let file = folder
            .path()
            .join(format!("a/b/c/cache/models--some--model/snapshots/{COMMIT}/model-1.safetensors"));
        assert!(file.symlink_metadata().is_err(), "{reason}");
        assert_contained(folder.path(), reason);
    }
}

#[test]
fn only_the_promised_bytes_of_an_endless_body_are_read() {
    let server = serve_changed("model-1.safetensors", |answer| Answer { endless: true, ..answer });
    let folder = tempfile::tempdir().expect("a folder");
    let model = hub(&server, folder.path()).download("some/model", "main").expect("downloaded");
    assert_eq!(fs::read(model.join("model-1.safetensors")).expect("there"), b"first");
    let server =
        serve_changed("config.json", |answer| Answer { length: Some(1 << 40), endless: true, ..answer });
    let folder = tempfile::tempdir().expect("a folder");
    let message = error(&hub(&server, folder.path()), "some/model", "main");
    assert!(message.contains("it has 1099511627776 bytes, expected at most 1073741824"), "{message}");
    assert!(tree(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn links_in_the_cache_are_not_written_through() {
    use std::os::unix::fs::symlink;
    let server = serve_files(model_files());
    let folder = tempfile::tempdir().expect("a folder");
    let repository = folder.path().join("a/b/c/cache/models--some--model");
    let victims = tempfile::tempdir().expect("a folder");
    let snapshot = repository.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).expect("created");
    // Files: the blob, the ref, and the entry of a snapshot.
    for (link, victim) in [
        (repository.join("blobs/config-json-23"), "blob"),
        (repository.join("refs/main"), "ref"),
        (snapshot.join("tokenizer.json"), "entry"),
    ] {
        fs::create_dir_all(link.parent().expect("a folder")).expect("created");
        symlink(victims.path().join(victim), link).expect("linked");
    }
    fs::write(victims.path().join("blob"), "x".repeat(23)).expect("written");
    let model = hub(&server, folder.path()).download("some/model", "main").expect("downloaded");
    assert_eq!(fs::read(model.join("config.json")).expect("there"), model_files()["config.json"]);
    assert_eq!(fs::read_to_string(victims.path().join("blob")).expect("there"), "x".repeat(23));
    assert_eq!(tree(victims.path()).len(), 1, "nothing is made through dangling links");
    // Folders.
    for linked in ["blobs", "snapshots", "refs"] {
        let folder = tempfile::tempdir().expect("a folder");
        let repository = folder.path().join("a/b/c/cache/models--some--model");
        let victim = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(&repository).expect("created");
        symlink(victim.path(), repository.join(linked)).expect("linked");
        let message = error(&hub(&server, folder.path()), "some/model", "main");
        assert!(
            message.contains("is a link to a folder outside of the model's cache; remove it"),
            "{message}"
        );
        assert!(tree(victim.path()).is_empty(), "{linked}");
    }
}

/// Archives without links keep the target as the content of a file.
#[test]
fn a_snapshot_may_be_a_link_stored_as_text() {
    let (server, folder) = (serve_files(model_files()), tempfile::tempdir().expect("a folder"));
    let hub = hub(&server, folder.path());
    let model = hub.download("some/model", "main").expect("downloaded");
    let copy = folder.path().join("a/b/c/cache/models--copy");
    fs::create_dir_all(copy.join("snapshots")).expect("created");
    fs::create_dir_all(copy.join("refs")).expect("created");
    fs::write(copy.join("refs/main"), "abc\n").expect("written");
    let offline = Hub { offline: Some("HF_HUB_OFFLINE is \"1\"".into()), ..hub };
    fs::write(copy.join("snapshots/abc"), format!("../../models--some--model/snapshots/{COMMIT}"))
        .expect("written");
    let linked = offline.download("copy", "main").expect("cached");
    assert_eq!(linked, model);
    fs::create_dir_all(folder.path().join("outside")).expect("created");
    fs::write(folder.path().join("outside/config.json"), "{}").expect("written");
    for outside in ["../../../../../../outside", "/etc", "..", "../.."] {
        fs::write(copy.join("snapshots/abc"), outside).expect("written");
        assert!(error(&offline, "copy", "main").contains("is not in the cache"), "{outside}");
    }
}

#[test]
fn a_ref_that_is_a_path_is_not_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = serve_files(model_files());
    let hub = Hub { offline: Some("HF_HUB_OFFLINE is \"1\"".into()), ..hub(&server, folder.path()) };
    let repository = hub.cache.join("models--some--model");
    fs::create_dir_all(repository.join("refs")).expect("created");
    fs::create_dir_all(repository.join("snapshots")).expect("created");
    fs::create_dir_all(folder.path().join("outside")).expect("created");
    fs::write(folder.path().join("outside/config.json"), "{}").expect("written");
    fs::write(repository.join("refs/main"), "../../../../../../outside").expect("written");
    assert!(error(&hub, "some/model", "main").contains("config.json (revision main) is not in the cache"));
}

#[test]
fn an_unreachable_server_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let endpoint = Some("http://127.0.0.1:1".into());
    let hub = Hub { cache: folder.path().into(), offline: None, endpoint, token: None };
    // The middle of the message belongs to the operating system.
    let message = error(&hub, "some/model", "main");
    let begin = "some/model: cannot download config.json (revision main): \
                 http://127.0.0.1:1/some/model/resolve/main/config.json: ";
    let end = "; check the name and the network, or give the path of a folder";
    assert!(message.starts_with(begin) && message.ends_with(end), "{message}");
}
