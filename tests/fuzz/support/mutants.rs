//! Changed copies of the corpus, so that `cargo test` also tries inputs that get past the first check of a parser.
//!
//! The same seed file gives the same mutants every time. `FUZZ_MUTANTS=100000` sets their number per file; without it, a file whose
//! mutants are slow gets fewer.

use std::{
    any::Any,
    collections::BTreeMap,
    env, fs,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::{Duration, Instant},
};

const MAX_TIME_PER_FILE: Duration = Duration::from_secs(1);

/// What replaces a number, a word or a text.
const HOSTILE: [&str; 32] = [
    "0",
    "-1",
    "1",
    "2",
    "1e309",
    "-0.0",
    "0.5",
    "4294967296",
    "1000000000",
    "9223372036854775807",
    "18446744073709551616",
    "null",
    "true",
    "NaN",
    "nan",
    "inf",
    "\"\"",
    "\"x\"",
    "[]",
    "[[]]",
    "[0]",
    "{}",
    "{\"\": 0}",
    "../../x",
    "/dev/zero",
    "\u{0}",
    "\u{feff}",
    "é",
    "{{",
    "%}",
    "\n",
    "all",
];

/// Runs `check` on every file of a corpus and on mutants of it.
///
/// # Panics
/// If `check` does, after all inputs have been tried: with the first input of each message, in a file that is named.
pub fn each(corpus: &Path, per_file: usize, check: impl Fn(&[u8])) {
    let requested = env::var("FUZZ_MUTANTS").ok().and_then(|number| number.parse().ok());
    let wanted: usize = requested.unwrap_or(per_file);
    let entries = fs::read_dir(corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
    let mut files: Vec<_> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    let mut failures = BTreeMap::new();
    for (idx, file) in files.iter().enumerate() {
        let seed = fs::read(file).expect("a readable seed file");
        let mut random = Random(idx as u64);
        let begun = Instant::now();
        for nth in 0..=wanted {
            if requested.is_none() && begun.elapsed() > MAX_TIME_PER_FILE {
                break;
            }
            let mut input = seed.clone();
            // The first is the file itself.
            for _ in 0..nth.min(1 + random.below(3)) {
                mutate(&mut input, &mut random);
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(&input))) {
                failures.entry(message(&*panic)).or_insert((file, input));
            }
        }
    }
    for (nth, (message, (file, input))) in failures.iter().enumerate() {
        let kept =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{nth}", file_name(corpus.parent())));
        fs::write(&kept, input).expect("written");
        eprintln!("{} (from {}): {message}", kept.display(), file_name(Some(file)));
    }
    assert!(failures.is_empty(), "{} different failures, see above", failures.len());
}

fn file_name(path: Option<&Path>) -> String {
    path.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned()
}

/// The message of a panic, without its numbers, so that the same failure counts once.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default();
    text.chars().filter(|c| !c.is_ascii_digit()).take(200).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() % end as u64) as usize }
    }
}

fn mutate(input: &mut Vec<u8>, random: &mut Random) {
    let tokens = tokens(input);
    match random.below(10) {
        0 if !input.is_empty() => {
            let at = random.below(input.len());
            input[at] ^= 1 << random.below(8);
        }
        1 => input.truncate(random.below(input.len() + 1)),
        2 => drop(input.drain(range(input.len(), random))),
        3 => {
            let part = range(input.len(), random);
            let copy = input[part.clone()].to_vec();
            input.splice(part.end..part.end, copy);
        }
        4 | 5 if tokens.len() > 1 => {
            let copy = input[tokens[random.below(tokens.len())].clone()].to_vec();
            input.splice(tokens[random.below(tokens.len())].clone(), copy);
        }
        6 if !tokens.is_empty() => drop(input.drain(tokens[random.below(tokens.len())].clone())),
        _ if !tokens.is_empty() => {
            let word = HOSTILE[random.below(HOSTILE.len())];
            input.splice(tokens[random.below(tokens.len())].clone(), word.bytes());
        }
        _ => input.extend(HOSTILE[random.below(HOSTILE.len())].bytes()),
    }
}

/// A part of at most 64 bytes.
fn range(len: usize, random: &mut Random) -> Range<usize> {
    let start = random.below(len + 1);
    start..start + random.below((len - start).min(64) + 1)
}

/// The numbers and words of a text, and its quoted texts with and without their quotes.
fn tokens(input: &[u8]) -> Vec<Range<usize>> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-+".contains(&byte) || byte >= 128;
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < input.len() {
        let start = at;
        if input[at] == b'"' {
            at += 1;
            while at < input.len() && input[at] != b'"' {
                at += 1;
            }
            at = (at + 1).min(input.len());
            tokens.push(start..at);
            if at - start > 2 {
                tokens.push(start + 1..at - 1);
            }
        } else if is_word(input[at]) {
            while at < input.len() && is_word(input[at]) {
                at += 1;
            }
            tokens.push(start..at);
        } else {
            at += 1;
        }
    }
    tokens
}
