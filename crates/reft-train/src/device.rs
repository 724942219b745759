//! The backend, chosen at run time. The only place that names one.

use burn::tensor::backend::AutodiffBackend;

/// Work that runs on whatever backend was chosen.
pub trait OnDevice {
    /// What it gives.
    type Output;

    /// Runs on a device of the backend `A`; `A::InnerBackend` is the same without gradients.
    fn run<A: AutodiffBackend>(self, device: A::Device) -> Self::Output;
}

/// A device that this program does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No such device.
    #[error("device {found:?}: expected one of {}", compiled().join(", "))]
    Unknown {
        /// What was asked for.
        found: String,
    },
    /// Its backend was not compiled in.
    #[error(
        "device {found:?}: this program was built without the feature `{feature}`; build it with --features {feature}"
    )]
    NotCompiled {
        /// What was asked for.
        found: String,
        /// The feature.
        feature: &'static str,
    },
}

/// The devices that were compiled in.
pub fn compiled() -> Vec<&'static str> {
    let mut names = vec!["auto"];
    if cfg!(feature = "flex") {
        names.push("cpu");
    }
    if cfg!(feature = "ndarray") {
        names.push("ndarray");
    }
    names
}

/// The device that a name stands for: `auto` is the CPU.
///
/// # Errors
/// If there is no such device, or it was not compiled in.
pub fn resolve(name: &str) -> Result<&'static str, DeviceError> {
    let not_compiled = |feature| DeviceError::NotCompiled { found: name.into(), feature };
    match name {
        "auto" if cfg!(feature = "flex") => Ok("cpu"),
        "auto" if cfg!(feature = "ndarray") => Ok("ndarray"),
        "auto" | "cpu" if !cfg!(feature = "flex") => Err(not_compiled("flex")),
        "ndarray" if !cfg!(feature = "ndarray") => Err(not_compiled("ndarray")),
        "cpu" => Ok("cpu"),
        "ndarray" => Ok("ndarray"),
        _ => Err(DeviceError::Unknown { found: name.into() }),
    }
}

/// Runs work on the device of that name.
///
/// # Errors
/// If there is no such device, or it was not compiled in.
pub fn on_device<W: OnDevice>(name: &str, work: W) -> Result<W::Output, DeviceError> {
    match resolve(name)? {
        #[cfg(feature = "flex")]
        "cpu" => Ok(work.run::<burn::backend::Autodiff<burn_flex::Flex>>(Default::default())),
        #[cfg(feature = "ndarray")]
        "ndarray" => Ok(work.run::<burn::backend::Autodiff<burn_ndarray::NdArray>>(Default::default())),
        other => {
            drop(work);
            Err(DeviceError::Unknown { found: other.into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_says_what_to_do() {
        assert!(resolve("tpu").expect_err("unknown").to_string().contains("expected one of auto"));
        assert!(resolve("auto").is_ok());
        if !cfg!(feature = "ndarray") {
            let error = resolve("ndarray").expect_err("not compiled").to_string();
            assert!(error.contains("--features ndarray"), "{error}");
        }
    }
}
