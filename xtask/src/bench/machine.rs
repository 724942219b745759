//! What a figure must carry: the commit, the machine and the command.

use crate::tools::{output, root};
use std::{env, fs, process::Command, thread};

/// Where and of what the measurements were made.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The commit, with `+` if files differ from it.
    pub commit: String,
    /// The processor's name.
    pub processor: String,
    /// The processors that this process may use.
    pub cores: usize,
    /// The day, in UTC.
    pub date: String,
    /// The command line.
    pub command: String,
}

impl Machine {
    pub fn find() -> Self {
        let git = |args: &[&str]| output(Command::new("git").args(args).current_dir(root()));
        let commit = git(&["rev-parse", "--short=9", "HEAD"]).unwrap_or_else(|| "unknown".into());
        let is_changed =
            git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|t| !t.is_empty());
        let args: Vec<String> = env::args().skip(1).collect();
        Self {
            commit: commit.trim().to_string() + if is_changed { "+" } else { "" },
            processor: processor(),
            cores: thread::available_parallelism().map_or(1, usize::from),
            date: output(Command::new("date").args(["-u", "+%Y-%m-%d"])).unwrap_or_default().trim().into(),
            command: format!("cargo xtask {}", args.join(" ")),
        }
    }
}

fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| {
        let line = info.lines().find(|line| line.split(':').next().is_some_and(|k| k.trim() == key))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let of_mac = || output(Command::new("sysctl").args(["-n", "machdep.cpu.brand_string"]));
    let name = value("model name").or_else(of_mac).unwrap_or_else(|| env::consts::ARCH.into());
    // Virtual machines hide the name of the model but not its number, and what it can compute.
    let number = value("model").map_or(String::new(), |number| format!(", model {number}"));
    let flags = value("flags").unwrap_or_default();
    let widest = [("avx512f", "AVX-512"), ("avx2", "AVX2")];
    let vectors = widest.iter().find(|(flag, _)| flags.split(' ').any(|f| f == *flag));
    name.trim().to_string() + &number + &vectors.map_or(String::new(), |(_, name)| format!(", {name}"))
}

/// The load average of the last minute, where the system reports it.
pub fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}
