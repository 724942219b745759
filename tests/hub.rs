//! Downloads by name, from a local server with the Hub's URLs.

use reft_models::hub::Hub;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The requests so far, as `path [authorization]`.
type Log = Arc<Mutex<Vec<String>>>;

struct Server {
    endpoint: String,
    log: Log,
}

/// Serves `owner/model/resolve/main/<file>`; models of the owner `gated` need a token.
fn serve(files: BTreeMap<String, Vec<u8>>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    let log: Log = Arc::default();
    let seen = log.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (files, seen) = (files.clone(), seen.clone());
            thread::spawn(move || answer(stream, &files, &seen));
        }
    });
    Server { endpoint, log }
}

fn answer(mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>, log: &Log) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut request = String::new();
    reader.read_line(&mut request).ok()?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim().split_once(':') {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_string()),
            None => break,
        };
    }
    let path = request.split(' ').nth(1)?.to_string();
    let token = headers.get("authorization").cloned().unwrap_or_default();
    log.lock().ok()?.push(format!("{path} {token}").trim().to_string());
    let mut parts = path.trim_start_matches('/').splitn(5, '/');
    let (owner, _model, _resolve, revision, file) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let mut refuse =
        |status: &str| write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    if owner == "gated" && token != "Bearer secret" {
        refuse("401 Unauthorized").ok()?;
        return None;
    }
    let Some(bytes) = files.get(file).filter(|_| revision == "main" || revision == COMMIT) else {
        refuse("404 Not Found").ok()?;
        return None;
    };
    // The client requests the first byte to learn the size, then the whole file.
    let (status, body, range) = match headers.get("range").and_then(|r| r.strip_prefix("bytes=")) {
        Some(range) => {
            let (start, end) = range.split_once('-')?;
            let start: usize = start.parse().ok()?;
            let end = end.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
            let range = format!("Content-Range: bytes {start}-{end}/{}\r\n", bytes.len());
            ("206 Partial Content", &bytes[start..=end], range)
        }
        None => ("200 OK", &bytes[..], String::new()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{range}ETag: \"{}-{}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
        body.len(),
        file.replace('.', "-"),
        bytes.len()
    )
    .ok()?;
    stream.write_all(body).ok()?;
    stream.flush().ok()?;
    let _ = reader.read(&mut [0]);
    Some(())
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

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub { cache: cache.into(), offline: false, endpoint: Some(server.endpoint.clone()), token: None }
}

fn error(hub: &Hub, name: &str, revision: &str) -> String {
    hub.download(name, revision).expect_err("must be refused").to_string()
}

impl Server {
    fn requests(&self) -> Vec<String> {
        self.log.lock().expect("log").clone()
    }
}

#[test]
fn a_sharded_model_is_downloaded_once_and_then_works_offline() {
    let (server, cache) = (serve(model_files()), tempfile::tempdir().expect("a folder"));
    let hub = hub(&server, cache.path());
    let folder = hub.download("some/model", "main").expect("downloaded");
    assert!(folder.ends_with(COMMIT));
    assert_eq!(fs::read(folder.join("model-1.safetensors")).expect("there"), b"first");
    assert_eq!(fs::read(folder.join("model-2.safetensors")).expect("there"), b"second");
    let n_requests = server.requests().len();
    let offline = Hub { offline: true, ..hub };
    assert_eq!(offline.download("some/model", "main").expect("cached"), folder);
    assert_eq!(server.requests().len(), n_requests, "cached files need no requests");
}

#[test]
fn a_model_that_is_not_cached_is_an_error_offline() {
    let (server, cache) = (serve(model_files()), tempfile::tempdir().expect("a folder"));
    let hub = Hub { offline: true, ..hub(&server, cache.path()) };
    assert_eq!(
        error(&hub, "some/model", "main"),
        format!(
            "some/model: config.json (revision main) is not in the cache {}; unset HF_HUB_OFFLINE to download it, or \
             give the path of a folder",
            cache.path().display()
        )
    );
    assert_eq!(server.requests(), [""; 0], "offline means no requests");
}

#[test]
fn a_gated_model_needs_the_token() {
    let (server, cache) = (serve(model_files()), tempfile::tempdir().expect("a folder"));
    let hub = hub(&server, cache.path());
    assert_eq!(
        error(&hub, "gated/model", "main"),
        format!(
            "gated/model: cannot download config.json (revision main): request error: \
             {}/gated/model/resolve/main/config.json: status code 401; accept the model's license on its page and set \
             HF_TOKEN",
            server.endpoint
        )
    );
    let with_token = Hub { token: Some("secret".into()), ..hub };
    with_token.download("gated/model", "main").expect("allowed");
}

#[test]
fn missing_models_and_revisions_are_errors() {
    let hint =
        "the model or this file does not exist; check the name and the network, or give the path of a folder";
    let (server, cache) = (serve(BTreeMap::new()), tempfile::tempdir().expect("a folder"));
    assert_eq!(
        error(&hub(&server, cache.path()), "no/model", "main"),
        format!("no/model: cannot download config.json (revision main): {hint}")
    );
    let (server, cache) = (serve(model_files()), tempfile::tempdir().expect("a folder"));
    assert_eq!(
        error(&hub(&server, cache.path()), "some/model", "v9"),
        format!("some/model: cannot download config.json (revision v9): {hint}")
    );
}

#[test]
fn other_names_are_refused_without_a_request() {
    let (server, cache) = (serve(model_files()), tempfile::tempdir().expect("a folder"));
    let hub = hub(&server, cache.path());
    for name in ["model", "../etc", "some/../model", "some/model/x", "/some/model", "some/", ""] {
        assert_eq!(
            error(&hub, name, "main"),
            format!("{name}: no such folder, and not a name on the Hub, which has the form `owner/model`")
        );
    }
    assert_eq!(server.requests(), [""; 0]);
}

/// File names become paths in the cache, so an index with a path is refused before any shard is downloaded.
#[test]
fn an_index_that_names_paths_is_refused() {
    for shard in ["../../x", "/tmp/x", "a/b", "..", ".hidden", ""] {
        let mut files = model_files();
        let index = format!(r#"{{"weight_map": {{"a": "model-1.safetensors", "z": "{shard}"}}}}"#);
        files.insert("model.safetensors.index.json".into(), index.into_bytes());
        let (server, folder) = (serve(files), tempfile::tempdir().expect("a folder"));
        let cache = folder.path().join("a/b/c/cache");
        fs::create_dir_all(&cache).expect("created");
        assert_eq!(
            error(&hub(&server, &cache), "some/model", "main"),
            format!(
                "some/model: model.safetensors.index.json names the file {shard:?}; expected a name of letters, digits, \
                 `.`, `_` and `-` that does not start with a dot"
            )
        );
        let requested = |file: &str| server.requests().iter().any(|request| request.ends_with(file));
        assert!(requested("/model.safetensors.index.json"));
        assert!(!requested("/model-1.safetensors"), "{shard:?}: no shard is downloaded");
        assert!(!requested("x"), "{shard:?}: {:?}", server.requests());
        let outside: Vec<_> =
            fs::read_dir(folder.path().join("a/b/c")).expect("a folder").flatten().collect();
        assert_eq!(outside.len(), 1, "{shard:?}: {outside:?}");
    }
}

#[test]
fn an_unreachable_server_is_an_error() {
    let cache = tempfile::tempdir().expect("a folder");
    let hub = Hub {
        cache: cache.path().into(),
        offline: false,
        endpoint: Some("http://127.0.0.1:1".into()),
        token: None,
    };
    // The middle of the message belongs to the operating system.
    let message = error(&hub, "some/model", "main");
    let begin = "some/model: cannot download config.json (revision main): request error: \
                 http://127.0.0.1:1/some/model/resolve/main/config.json: Connection Failed: ";
    let end = "; check the name and the network, or give the path of a folder";
    assert!(message.starts_with(begin) && message.ends_with(end), "{message}");
}
