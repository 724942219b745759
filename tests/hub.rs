//! Models by name, from a server on the loopback that speaks the hub's paths.

use reft_models::hub::{Hub, HubError};
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

/// What the server was asked, as `METHOD path [authorization]`.
type Log = Arc<Mutex<Vec<String>>>;

struct Server {
    endpoint: String,
    log: Log,
}

/// Serves `owner/model/resolve/main/<file>`; `gated/…` wants a token.
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
    // The client asks for the first byte to learn the size, then for the whole.
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

#[test]
fn a_sharded_model_is_downloaded_once_and_then_works_offline() {
    let (server, cache) = (serve(model_files()), tempfile::tempdir().expect("a folder"));
    let hub = hub(&server, cache.path());
    let folder = hub.download("some/model", "main").expect("downloaded");
    assert_eq!(fs::read(folder.join("model-2.safetensors")).expect("there"), b"second");
    assert!(folder.ends_with(COMMIT));
    let asked = server.log.lock().expect("log").len();
    let offline = Hub { offline: true, ..hub.clone() };
    assert_eq!(offline.download("some/model", "main").expect("cached"), folder);
    assert_eq!(server.log.lock().expect("log").len(), asked, "the cache must not ask the server");
}

#[test]
fn offline_without_the_model_is_an_error_that_says_so() {
    let (server, cache) = (serve(model_files()), tempfile::tempdir().expect("a folder"));
    let hub = Hub { offline: true, ..hub(&server, cache.path()) };
    let error = hub.download("some/model", "main").expect_err("not cached");
    assert!(matches!(error, HubError::Offline { .. }));
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    assert!(server.log.lock().expect("log").is_empty(), "offline must not ask the server");
}

#[test]
fn a_gated_model_needs_the_token() {
    let (server, cache) = (serve(model_files()), tempfile::tempdir().expect("a folder"));
    let hub = hub(&server, cache.path());
    let error = hub.download("gated/model", "main").expect_err("no token").to_string();
    assert!(error.contains("HF_TOKEN"), "{error}");
    let with_token = Hub { token: Some("secret".into()), ..hub };
    with_token.download("gated/model", "main").expect("allowed");
}

#[test]
fn missing_models_revisions_and_names_are_errors() {
    let (server, cache) = (serve(BTreeMap::new()), tempfile::tempdir().expect("a folder"));
    let hub = hub(&server, cache.path());
    let error = hub.download("no/model", "main").expect_err("missing").to_string();
    assert!(error.contains("no/model") && error.contains("config.json"), "{error}");
    let error = hub.download("not-a-hub-name", "main").expect_err("no name").to_string();
    assert!(error.contains("no such folder"), "{error}");
    assert!(matches!(hub.download("../etc", "main"), Err(HubError::NotFound { .. })));
    let (server, cache) = (serve(model_files()), tempfile::tempdir().expect("a folder"));
    let error =
        self::hub(&server, cache.path()).download("some/model", "v9").expect_err("no revision").to_string();
    assert!(error.contains("revision v9"), "{error}");
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
    let error = hub.download("some/model", "main").expect_err("unreachable").to_string();
    assert!(error.contains("cannot download config.json") && error.contains("network"), "{error}");
}
