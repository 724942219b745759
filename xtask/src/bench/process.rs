//! A measured process: its time, its peak memory, and what else ran on the machine meanwhile.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

/// A process that has ended well.
#[derive(Debug, Clone, Default)]
pub struct Ended {
    /// What it printed on standard output.
    pub stdout: String,
    /// Seconds from its start to its end.
    pub wall: f64,
    /// Seconds of processor time, of all of its threads.
    pub cpu: f64,
    /// Peak resident memory in MiB, where the system reports it.
    pub peak_mb: Option<f64>,
    /// Processors that others used meanwhile, on average, where the system reports it (Linux).
    pub others: Option<f64>,
}

/// Runs a command to its end with a number of threads, in ours (rayon) and in others (OpenMP). Its output goes to files
/// with this path and `.out` or `.err`.
///
/// # Errors
/// What could not be done, or the end of what the command wrote on standard error.
pub fn run(command: &mut Command, threads: usize, log: &Path) -> Result<Ended, String> {
    let (out, err) = (log.with_extension("out"), log.with_extension("err"));
    let create = |path: &Path| File::create(path).map_err(|error| format!("{}: {error}", path.display()));
    for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"] {
        command.env(variable, threads.to_string());
    }
    command.stdin(Stdio::null()).stdout(create(&out)?).stderr(create(&err)?);
    let (busy_before, begun) = (busy_seconds(), Instant::now());
    let child = command.spawn().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    let Waited { succeeded, cpu, peak_mb } = wait(child)?;
    let wall = begun.elapsed().as_secs_f64();
    let others =
        busy_before.zip(busy_seconds()).map(|(before, after)| ((after - before - cpu) / wall).max(0.0));
    if !succeeded {
        let text = fs::read_to_string(&err).unwrap_or_default();
        let last: Vec<&str> = text.lines().rev().take(5).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        return Err(format!("{command:?} failed:\n{}\n(all of it: {})", last.join("\n"), err.display()));
    }
    let stdout = fs::read_to_string(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    Ok(Ended { stdout, wall, cpu, peak_mb, others })
}

struct Waited {
    succeeded: bool,
    cpu: f64,
    peak_mb: Option<f64>,
}

#[cfg(unix)]
fn wait(child: Child) -> Result<Waited, String> {
    let pid = child.id() as libc::pid_t;
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both pointers are to values that live until the call returns, and nobody else waits for this process.
    let usage = unsafe {
        loop {
            if libc::wait4(pid, &mut status, 0, usage.as_mut_ptr()) == pid {
                break usage.assume_init();
            }
            let error = std::io::Error::last_os_error();
            if error.kind() != std::io::ErrorKind::Interrupted {
                return Err(format!("waiting for process {pid}: {error}"));
            }
        }
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    // Linux counts in KiB, macOS in bytes.
    let unit = if cfg!(target_os = "macos") { 1024.0 * 1024.0 } else { 1024.0 };
    Ok(Waited {
        succeeded: libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        peak_mb: Some(usage.ru_maxrss as f64 / unit),
    })
}

#[cfg(not(unix))]
fn wait(mut child: Child) -> Result<Waited, String> {
    let status = child.wait().map_err(|error| error.to_string())?;
    Ok(Waited { succeeded: status.success(), cpu: 0.0, peak_mb: None })
}

/// Seconds that all processors together have been busy since the start of the machine.
fn busy_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<f64> = text.lines().next()?.split_whitespace().skip(1).flat_map(str::parse).collect();
    let &[user, nice, system, _idle, _io_wait, irq, soft_irq, ..] = ticks.as_slice() else { return None };
    // A tick is a hundredth of a second on every system that has this file.
    Some((user + nice + system + irq + soft_irq) / 100.0)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn time_memory_threads_and_output_are_those_of_the_process() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("p");
        let shell = |script: &str| run(Command::new("sh").args(["-c", script]), 3, &log);
        let ended = shell("echo $RAYON_NUM_THREADS $OMP_NUM_THREADS; sleep 0.2").expect("it ends well");
        assert_eq!(ended.stdout, "3 3\n");
        assert!(ended.wall >= 0.2 && ended.cpu < 0.2, "{ended:?}");
        assert!(ended.peak_mb.is_some_and(|mb| mb > 0.1 && mb < 1000.0), "{ended:?}");
        let error = shell("echo why >&2; exit 3").expect_err("it fails");
        assert!(error.contains("failed:\nwhy\n"), "{error}");
    }
}
