//! The command line of `cargo xtask bench`.

use std::path::PathBuf;

/// What to measure, and how.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    /// Whether growth with length, batch and depth is measured instead of the items.
    pub is_scaling: bool,
    /// Whether pyreft and transformers do the same work in turn.
    pub against_pyreft: bool,
    /// The items whose name begins with one of these; the usual ones if empty.
    pub only: Vec<String>,
    /// Numbers of threads; 1 and all processors, at most 2, if empty.
    pub threads: Vec<usize>,
    /// How often each process runs.
    pub runs: Option<usize>,
    /// Steps per epoch of a training run, and decoded tokens, instead of the item's own.
    pub steps: Option<usize>,
    /// Whether only the tiny item runs, ours alone.
    pub is_smoke: bool,
    /// The Python with pyreft.
    pub python: Option<PathBuf>,
    /// Programs that are there, with their labels, instead of one that is built.
    pub programs: Vec<(String, PathBuf)>,
    /// Keys of recipes to override.
    pub overrides: Vec<String>,
    /// Whether the pictures are written into `docs`.
    pub write_docs: bool,
}

pub const USAGE: &str = "\
usage: cargo xtask bench [scaling] [OPTION…]

Training, decoding and kernels, ours and pyreft's in turn: median seconds per step, peak memory, ratios and their spread.
`scaling` measures a training step against length, batch and depth instead.

--against-pyreft      also pyreft and transformers, in turn with ours
--only NAME…          only the items whose name begins so, as in --only a sst2 decode-smollm; `decode-7b` runs only if named
--threads N,…         numbers of threads [default: 1,2]
--runs N              processes of each program [default: 3]
--steps N             steps per epoch, and decoded tokens, instead of the item's own
--program [LABEL=]FILE  measure this program instead of building one; twice, with labels, to compare two
--set KEY=VALUE       override a key of the recipes; may be repeated
--python FILE         the Python with pyreft [default: $REFT_BENCH_PYTHON, else python3]
--write-docs          with scaling: write docs/scaling.svg
--smoke               seconds: ours alone on a tiny model

$REFT_SHARED [default: ../shared] has the models and data. Results: target/bench/results.jsonl and table.md";

impl Options {
    /// # Errors
    /// If an argument is unknown or has no value.
    pub fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Options::default();
        let mut args = args.iter().map(String::as_str).peekable();
        options.is_scaling = args.next_if_eq(&"scaling").is_some();
        while let Some(arg) = args.next() {
            let (flag, inline) = arg.split_once('=').map_or((arg, None), |(flag, value)| (flag, Some(value)));
            let mut value = || inline.or_else(|| args.next()).ok_or(format!("{flag} needs a value"));
            let number = |text: &str| text.parse().ok().filter(|n| *n > 0);
            let positive =
                |text: &str| number(text).ok_or(format!("{flag} {text}: expected a number above 0"));
            match flag {
                "--against-pyreft" => options.against_pyreft = true,
                "--smoke" => options.is_smoke = true,
                "--write-docs" => options.write_docs = true,
                "--runs" => options.runs = Some(positive(value()?)?),
                "--steps" => options.steps = Some(positive(value()?)?),
                "--threads" => {
                    options.threads = value()?.split(',').map(positive).collect::<Result<_, _>>()?;
                }
                "--only" => {
                    options.only.extend(value()?.split(',').map(String::from));
                    while let Some(name) = args.next_if(|next| !next.starts_with("--")) {
                        options.only.push(name.into());
                    }
                }
                "--python" => options.python = Some(value()?.into()),
                "--set" => options.overrides.push(value()?.into()),
                "--program" => {
                    let text = value()?;
                    let (label, file) = text.split_once('=').unwrap_or(("reft", text));
                    options.programs.push((label.into(), file.into()));
                }
                _ => return Err(format!("unknown argument {arg}")),
            }
        }
        if options.write_docs && !options.is_scaling {
            return Err("--write-docs is for `bench scaling`".into());
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Options, String> {
        let args: Vec<String> = args.split_whitespace().map(String::from).collect();
        Options::parse(&args)
    }

    #[test]
    fn values_follow_their_flag_in_either_way() {
        let options = parse("--only a b --threads=1,2 --runs 5 --program old=/p --set train.reuse=off")
            .expect("parsed");
        assert_eq!(
            (options.only, options.threads, options.runs),
            (vec!["a".into(), "b".into()], vec![1, 2], Some(5))
        );
        assert_eq!(options.programs, [("old".to_string(), PathBuf::from("/p"))]);
        assert_eq!(options.overrides, ["train.reuse=off"]);
        let options = parse("scaling --program=/p --write-docs").expect("parsed");
        assert_eq!(options.programs, [("reft".to_string(), PathBuf::from("/p"))]);
        assert!(options.is_scaling && options.write_docs && !options.against_pyreft);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parse("--runs"), Err("--runs needs a value".into()));
        assert_eq!(parse("--threads 1,x"), Err("--threads x: expected a number above 0".into()));
        assert_eq!(parse("--runs 0"), Err("--runs 0: expected a number above 0".into()));
        assert_eq!(parse("--fast"), Err("unknown argument --fast".into()));
        assert!(parse("--write-docs").is_err());
    }
}
