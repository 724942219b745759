//! A server that answers as it likes. Each part is the answer to one request: the part's name is the requested file, its content
//! are header lines, an empty line and the body. `Status: 302 Found` sets the status.
//!
//! A download ends, and nothing outside the cache is created, changed or linked to.

use crate::support::parts::Parts;
use reft_models::hub::Hub;
use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    panic::{catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Of one file in the cache.
const MAX_FILE: u64 = 1 << 20;

struct Answer {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

type Answers = BTreeMap<String, Answer>;

pub fn target(input: &[u8]) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let endpoint = format!("http://{address}");
    let parts = Parts::of(input);
    let answers = parts.iter().map(|(name, content)| (name.to_string(), parse(content, &endpoint))).collect();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| serve(&listener, &answers, &is_done));
        let result = catch_unwind(|| download(&endpoint));
        is_done.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(address);
        result.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// Answers one request after the other.
fn serve(listener: &TcpListener, answers: &Answers, is_done: &AtomicBool) {
    for stream in listener.incoming().flatten() {
        if is_done.load(Ordering::Relaxed) {
            return;
        }
        let _ = answer(stream, answers);
    }
}

fn download(endpoint: &str) {
    let root = tempfile::tempdir().expect("a folder");
    let cache = root.path().join("a/b/c/cache");
    fs::create_dir_all(&cache).expect("created");
    fs::write(root.path().join("a/victim.txt"), "before").expect("written");
    let before = files(root.path(), &cache);
    let hub = Hub { cache: cache.clone(), offline: None, endpoint: Some(endpoint.into()), token: Some("secret".into()) };
    match hub.download("some/model", "main") {
        Ok(folder) => assert!(folder.starts_with(&cache) && folder.join("config.json").is_file()),
        Err(error) => assert!(!error.to_string().contains("secret"), "{error}"),
    }
    assert_eq!(files(root.path(), &cache), before, "outside the cache");
    let inside = cache.canonicalize().expect("there");
    for path in walk(&cache) {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        assert!(real.starts_with(&inside) || real.starts_with(&cache), "{} leads to {}", path.display(), real.display());
        let len = fs::metadata(&path).map_or(0, |data| data.len());
        assert!(len <= MAX_FILE, "{}: {len} bytes", path.display());
    }
}

/// Paths and contents below `root`, except in `cache`.
fn files(root: &Path, cache: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let outside = walk(root).into_iter().filter(|path| !path.starts_with(cache));
    outside.map(|path| (path.clone(), fs::read(path).unwrap_or_default())).collect()
}

/// All files, folders and links below a folder, without following links.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        found.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(walk(&entry.path()));
        }
    }
    found
}

fn parse(content: &[u8], endpoint: &str) -> Answer {
    let end = content.windows(2).position(|pair| pair == b"\n\n");
    let (head, body) = match end {
        Some(at) => (&content[..at], &content[at + 2..]),
        None => (&b""[..], content),
    };
    let head = String::from_utf8_lossy(head).replace("ENDPOINT", endpoint);
    let header = |line: &str| line.split_once(':').map(|(name, value)| (name.trim().into(), value.trim().into()));
    Answer { headers: head.lines().filter_map(header).collect(), body: body.to_vec() }
}

/// Answers one request. What is not in the input does not exist.
fn answer(mut stream: TcpStream, answers: &Answers) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut range = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some(("range", value)) = line.trim().to_lowercase().split_once(": ") {
            range = value.strip_prefix("bytes=").map(str::to_string);
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    let Some(Answer { headers, body }) = answers.get(file) else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let range = range.and_then(|range| {
        let (start, end) = range.split_once('-')?;
        let last = body.len().checked_sub(1)?;
        let start = start.parse::<usize>().ok()?.min(last);
        Some(start..=end.parse().unwrap_or(last).clamp(start, last))
    });
    let (status, sent) = match &range {
        Some(range) => ("206 Partial Content", &body[range.clone()]),
        None => ("200 OK", &body[..]),
    };
    let given = |name: &str| headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    write!(stream, "HTTP/1.1 {}\r\nConnection: close\r\n", given("Status").map_or(status, String::as_str))?;
    let content_range =
        range.map_or(String::new(), |range| format!("bytes {}-{}/{}", range.start(), range.end(), body.len()));
    let defaults = [
        ("Content-Length", sent.len().to_string()),
        ("Content-Range", content_range),
        ("ETag", format!("\"{}-{}\"", file.replace('.', "-"), body.len())),
        ("X-Repo-Commit", COMMIT.to_string()),
    ];
    for (name, value) in defaults.iter().filter(|(name, value)| given(name).is_none() && !value.is_empty()) {
        write!(stream, "{name}: {value}\r\n")?;
    }
    for (name, value) in headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("Status")) {
        write!(stream, "{name}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(sent)?;
    stream.flush()
}
