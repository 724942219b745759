//! The folder of a run: its files, and the observer that writes them during training.

use super::{
    event::{Event, Summary},
    files::{ADAPTER_FOLDER, Claim, METRICS_FILE, RECIPE_FILE, SUMMARY_FILE},
};
use crate::{
    adapter::{AdapterOrigin, save_adapter},
    error::RunError,
    method::Baseline,
    observer::{Observer, StepReport, TrainError},
    recipe::Recipe,
    score::Evaluation,
    trainable::Trainable,
};
use reft_core::{AdapterError, FileError, files::write_atomic};
use reft_kernels::Kernels;
use serde::Serialize;
use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

/// Writes the files of a run while it is under way, and forwards events.
pub(super) struct RunFolder<'a, 'b> {
    folder: PathBuf,
    claim: Claim,
    metrics: File,
    origin: AdapterOrigin,
    device_mb: &'a dyn Fn() -> Option<f64>,
    on_event: &'a mut (dyn FnMut(Event) + 'b),
}

impl<'a, 'b> RunFolder<'a, 'b> {
    /// Creates the folder, replacing an existing run if the recipe allows it.
    pub(super) fn create(
        folder: &Path,
        recipe: &Recipe,
        origin: AdapterOrigin,
        device_mb: &'a dyn Fn() -> Option<f64>,
        on_event: &'a mut (dyn FnMut(Event) + 'b),
    ) -> Result<Self, RunError> {
        let claim = Claim::new(folder, recipe.run.overwrite)?;
        let path = folder.join(RECIPE_FILE);
        write_atomic(&path, recipe.to_toml().as_bytes()).map_err(FileError::io(&path))?;
        let path = folder.join(METRICS_FILE);
        let metrics = File::create(&path).map_err(FileError::io(&path))?;
        Ok(Self { folder: folder.into(), claim, metrics, origin, device_mb, on_event })
    }

    /// The folder of the adapter.
    pub(super) fn adapter_folder(&self) -> PathBuf {
        self.folder.join(ADAPTER_FOLDER)
    }

    /// Whether an adapter has been saved.
    pub(super) fn has_adapter(&self) -> bool {
        self.claim.has_adapter()
    }

    /// The folder with the run that this one was to replace.
    pub(super) fn replaced(&self) -> Option<PathBuf> {
        self.claim.replaced()
    }

    /// Saves the adapter.
    pub(super) fn save_adapter<B: Kernels>(&self, trainable: &Trainable<B>) -> Result<(), AdapterError> {
        save_adapter(&self.adapter_folder(), trainable, &self.origin)
    }

    /// Writes `summary.json`, which ends the run, and deletes the run that it replaces.
    pub(super) fn finish(&mut self, summary: &Summary) -> Result<(), FileError> {
        let json = serde_json::to_string_pretty(summary).expect("plain data serializes") + "\n";
        let path = self.folder.join(SUMMARY_FILE);
        write_atomic(&path, json.as_bytes()).map_err(FileError::io(&path))?;
        self.claim.succeed()
    }

    /// Forwards an event.
    pub(super) fn report_event(&mut self, event: Event) {
        (self.on_event)(event);
    }

    fn write_metrics(&mut self, line: &impl Serialize) -> Result<(), TrainError> {
        let line = serde_json::to_string(line).expect("plain data serializes") + "\n";
        self.metrics.write_all(line.as_bytes()).map_err(|error| TrainError::Io {
            file: self.folder.join(METRICS_FILE).display().to_string(),
            error,
        })
    }
}

impl<B: Kernels> Observer<B> for RunFolder<'_, '_> {
    fn progress(&mut self, step: usize, total_steps: usize) {
        (self.on_event)(Event::Progress { step, total_steps });
    }

    fn device_mb(&self) -> Option<f64> {
        (self.device_mb)()
    }

    fn report(&mut self, report: &StepReport) -> Result<(), TrainError> {
        (self.on_event)(Event::Step(report));
        self.write_metrics(report)
    }

    fn save_progress(&mut self, trainable: &Trainable<B>) -> Result<(), TrainError> {
        match trainable.baseline() {
            // As large as the model: too large to write with every log line.
            Some(Baseline::Full) => Ok(()),
            _ => Ok(self.save_adapter(trainable)?),
        }
    }

    fn evaluated(
        &mut self,
        step: usize,
        evaluation: &Evaluation,
        best: Option<&Trainable<B>>,
    ) -> Result<(), TrainError> {
        (self.on_event)(Event::Evaluated { step, evaluation, best: best.is_some() });
        let mut line = serde_json::Map::from_iter([("step".to_string(), step.into())]);
        let score = &evaluation.score.0;
        line.extend(score.iter().map(|(name, value)| (format!("eval_{name}"), (*value).into())));
        line.insert("best".into(), best.is_some().into());
        self.write_metrics(&line)?;
        match best {
            Some(trainable) => Ok(self.save_adapter(trainable)?),
            None => Ok(()),
        }
    }
}
