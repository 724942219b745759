//! Which backends to build, by what is installed on this machine.
//!
//! Compiling a GPU backend takes longer than everything else, so it is built only where a driver could use it. Only files are
//! checked; no library is loaded and no driver is started.

use crate::tools::output;
use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What was found on this machine.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// `linux`, `macos`, `windows`, …
    pub os: &'static str,
    /// Whether a GPU has a device file. Linux only.
    pub gpu_node: bool,
    /// Whether the Vulkan loader is installed. Not checked on macOS.
    pub vulkan_loader: bool,
    /// File names of the Vulkan drivers' manifests. Linux only.
    pub vulkan_drivers: Vec<String>,
    /// The CUDA driver's library.
    pub cuda_driver: bool,
    /// The library with which the CUDA backend compiles its kernels.
    pub nvrtc: bool,
    /// The headers that these kernels include.
    pub cuda_headers: bool,
}

/// The features to build, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice {
    /// Features of reft-cli.
    pub features: Vec<String>,
    reason: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let names: Vec<&str> =
            self.features.iter().map(|name| if name == "flex" { "cpu" } else { name }).collect();
        write!(f, "building for: {} ({})", names.join(", "), self.reason)
    }
}

/// Chooses features: always `flex`, then the requested ones, or else the backends that this machine can use and that of the
/// device named by the recipe.
pub fn choose(found: &Found, requested: Option<&str>, device: Option<&str>) -> Choice {
    let mut features = vec!["flex".to_string()];
    let mut add = |name: &str| {
        if !name.is_empty() && !features.iter().any(|known| known == name) {
            features.push(name.into());
        }
    };
    if let Some(requested) = requested {
        requested.split([',', ' ']).for_each(&mut add);
        return Choice { features, reason: "requested by --features".into() };
    }
    let mut reasons = Vec::new();
    let cuda = match found {
        Found { cuda_driver: false, .. } => None,
        Found { nvrtc: true, cuda_headers: true, .. } => {
            add("cuda");
            Some("CUDA driver and toolkit found".to_string())
        }
        _ => Some("CUDA driver found, but not the toolkit's NVRTC and headers".into()),
    };
    match wgpu(found) {
        Ok(reason) => {
            add("wgpu");
            reasons.push(reason);
        }
        Err(reason) => reasons.push(format!("{reason}; override with --features wgpu")),
    }
    reasons.extend(cuda);
    let backend = device.and_then(|device| device.split(':').next()).unwrap_or_default();
    if ["ndarray", "wgpu", "vulkan", "metal", "cuda"].contains(&backend) {
        add(backend);
        reasons.push(format!("needed by device={}", device.unwrap_or_default()));
    }
    Choice { features, reason: reasons.join("; ") }
}

/// Why the WGPU backend can be used here, or why not.
fn wgpu(found: &Found) -> Result<String, String> {
    let software = |name: &&String| {
        ["lvp_icd", "llvmpipe", "lavapipe", "swiftshader"].iter().any(|driver| name.contains(driver))
    };
    match found.os {
        "macos" => Ok("Metal is part of macOS".into()),
        // Drivers install the loader there.
        "windows" if found.vulkan_loader => Ok("Vulkan found".into()),
        "windows" => Err("no Vulkan driver found".into()),
        _ if found.vulkan_drivers.is_empty() => Err("no Vulkan driver found".into()),
        _ if !found.vulkan_loader => Err("a Vulkan driver, but no loader (libvulkan.so.1) found".into()),
        _ if found.vulkan_drivers.iter().all(|name| software(&name)) => {
            Err("only a software Vulkan driver found, which is slower than the CPU backend".into())
        }
        _ if !found.gpu_node => Err("Vulkan drivers, but no GPU found".into()),
        _ => {
            let driver = found.vulkan_drivers.iter().find(|name| !software(name));
            Ok(format!("Vulkan driver {} found", driver.map(String::as_str).unwrap_or_default()))
        }
    }
}

/// Inspects this machine.
pub fn find() -> Found {
    let os = env::consts::OS;
    if os == "macos" {
        return Found { os, ..Found::default() };
    }
    let libraries = Libraries::new();
    Found {
        os,
        gpu_node: has_gpu_node(),
        vulkan_loader: libraries.any(|name| matches!(name, "libvulkan.so.1" | "vulkan-1.dll")),
        vulkan_drivers: vulkan_drivers(),
        cuda_driver: libraries.any(|name| matches!(name, "libcuda.so" | "libcuda.so.1" | "nvcuda.dll")),
        nvrtc: libraries.any(|name| {
            name.starts_with("libnvrtc.so") || name.starts_with("nvrtc64_") && name.ends_with(".dll")
        }),
        cuda_headers: cuda_folder().join("include/cuda_runtime.h").exists(),
    }
}

/// The folder where the CUDA backend looks for headers.
fn cuda_folder() -> PathBuf {
    let standard = ["/usr/local/cuda", "/opt/cuda", "C:/Program Files/NVIDIA GPU Computing Toolkit/CUDA"];
    let named = env::var_os("CUDA_PATH").map(PathBuf::from);
    named.or_else(|| standard.map(PathBuf::from).into_iter().find(|f| f.exists())).unwrap_or("/usr".into())
}

/// Names of the files in a folder.
fn names(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Whether there is a device file of a GPU. Mesa installs the drivers of all GPUs, so a driver alone proves nothing.
fn has_gpu_node() -> bool {
    let of_windows_host = Path::new("/dev/dxg").exists();
    of_windows_host
        || names(Path::new("/dev/dri")).any(|name| name.starts_with("renderD"))
        || names(Path::new("/dev"))
            .any(|name| ["nvidia", "nvgpu", "mali", "kgsl"].iter().any(|gpu| name.starts_with(gpu)))
}

/// File names of the manifests that the Vulkan loader reads.
fn vulkan_drivers() -> Vec<String> {
    let named = env::var_os("VK_DRIVER_FILES").or_else(|| env::var_os("VK_ICD_FILENAMES"));
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
    let mut found: Vec<String> = match named.filter(|files| !files.is_empty()) {
        // They replace the loader's own search.
        Some(files) => env::split_paths(&files)
            .filter(|file| file.exists())
            .filter_map(|file| file.file_name()?.to_str().map(String::from))
            .collect(),
        None => ["/usr/share", "/usr/local/share", "/etc", "/run/opengl-driver/share"]
            .into_iter()
            .map(PathBuf::from)
            .chain(home)
            .flat_map(|folder| names(&folder.join("vulkan/icd.d")).collect::<Vec<_>>())
            .filter(|name| name.ends_with(".json"))
            .collect(),
    };
    found.sort();
    found
}

/// File names of the shared libraries that a program here could load.
struct Libraries(Vec<String>);

impl Libraries {
    fn new() -> Self {
        let arch = env::consts::ARCH;
        let mut folders: Vec<PathBuf> = match env::consts::OS {
            "windows" => {
                vec!["C:/Windows/System32".into(), cuda_folder().join("bin"), cuda_folder().join("bin/x64")]
            }
            _ => {
                let of_distribution =
                    [format!("/usr/lib/{arch}-linux-gnu"), format!("/lib/{arch}-linux-gnu")];
                let usual =
                    ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/usr/lib/wsl/lib"];
                let others = ["/run/opengl-driver/lib", "/usr/local/cuda/lib64", "/opt/cuda/lib64"];
                of_distribution
                    .into_iter()
                    .chain(usual.map(Into::into))
                    .chain(others.map(Into::into))
                    .map(PathBuf::from)
                    .collect()
            }
        };
        let path = if cfg!(windows) { "PATH" } else { "LD_LIBRARY_PATH" };
        folders.extend(env::var_os(path).iter().flat_map(env::split_paths));
        let mut all: Vec<String> = folders.iter().flat_map(|folder| names(folder)).collect();
        // Lines such as `libvulkan.so.1 (libc6,x86-64) => /usr/lib/…`.
        let cached =
            ["ldconfig", "/sbin/ldconfig"].into_iter().find_map(|tool| output(Command::new(tool).arg("-p")));
        all.extend(
            cached
                .iter()
                .flat_map(|text| text.lines())
                .filter_map(|line| line.split_whitespace().next().map(String::from)),
        );
        Self(all)
    }

    fn any(&self, matches: impl Fn(&str) -> bool) -> bool {
        self.0.iter().any(|name| matches(name))
    }
}

#[cfg(test)]
mod tests {
    use super::{Found, choose};

    fn linux(drivers: &[&str]) -> Found {
        let vulkan_drivers = drivers.iter().map(ToString::to_string).collect();
        Found { os: "linux", gpu_node: true, vulkan_loader: true, vulkan_drivers, ..Found::default() }
    }

    fn line(found: &Found) -> String {
        choose(found, None, None).to_string()
    }

    #[test]
    fn a_gpu_backend_is_built_only_where_a_driver_could_use_it() {
        let radeon = linux(&["lvp_icd.x86_64.json", "radeon_icd.x86_64.json"]);
        let cases = [
            (linux(&[]), "cpu (no Vulkan driver found; override with --features wgpu)"),
            (
                linux(&["lvp_icd.x86_64.json"]),
                "cpu (only a software Vulkan driver found, which is slower than the CPU backend; override with \
                 --features wgpu)",
            ),
            (radeon.clone(), "cpu, wgpu (Vulkan driver radeon_icd.x86_64.json found)"),
            (
                Found { gpu_node: false, ..radeon.clone() },
                "cpu (Vulkan drivers, but no GPU found; override with --features wgpu)",
            ),
            (
                Found { vulkan_loader: false, ..radeon },
                "cpu (a Vulkan driver, but no loader (libvulkan.so.1) found; override with --features wgpu)",
            ),
            (Found { os: "macos", ..Found::default() }, "cpu, wgpu (Metal is part of macOS)"),
            (Found { os: "windows", vulkan_loader: true, ..Found::default() }, "cpu, wgpu (Vulkan found)"),
        ];
        for (found, expected) in cases {
            assert_eq!(line(&found), format!("building for: {expected}"));
        }
    }

    #[test]
    fn cuda_needs_driver_and_toolkit() {
        let driver = Found { cuda_driver: true, ..linux(&["nvidia_icd.json"]) };
        assert_eq!(
            line(&driver),
            "building for: cpu, wgpu (Vulkan driver nvidia_icd.json found; CUDA driver found, but not the toolkit's NVRTC \
             and headers)"
        );
        let toolkit = Found { nvrtc: true, cuda_headers: true, ..driver };
        assert_eq!(choose(&toolkit, None, None).features, ["flex", "cuda", "wgpu"]);
        let no_driver = Found { cuda_driver: false, ..toolkit };
        assert_eq!(choose(&no_driver, None, None).features, ["flex", "wgpu"]);
    }

    #[test]
    fn a_named_device_adds_its_feature_unless_features_are_requested() {
        let features = |asked, device| choose(&linux(&[]), asked, device).features;
        assert_eq!(features(None, Some("cpu")), ["flex"]);
        assert_eq!(features(None, Some("auto")), ["flex"]);
        assert_eq!(features(None, Some("ndarray")), ["flex", "ndarray"]);
        assert_eq!(features(None, Some("cuda:1")), ["flex", "cuda"]);
        assert_eq!(features(Some("cuda,vulkan"), Some("wgpu")), ["flex", "cuda", "vulkan"]);
        assert_eq!(features(Some("default"), None), ["flex", "default"]);
        assert_eq!(features(Some("flex"), None), ["flex"]);
    }
}
