//! Everything that training changes: interventions, or the weights of a baseline, and a classifier's head.

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{
        Tensor,
        backend::{AutodiffBackend, Backend},
    },
};
use reft_core::{Adapter, AdapterError, BaseModel, Head, Reft, TaskConfig, Trained, reft::trainable};
use reft_models::{
    LoraConfig, Tuned, Tuning,
    peft::{self, PeftNames, TunedFileError},
    tuned::NamedTensors,
};
use std::path::Path;

/// What is learned. With a baseline, the interventions are none.
#[derive(Module, Debug)]
pub struct Learned<B: Backend> {
    /// Interventions.
    pub reft: Reft<B>,
    /// Trained weights.
    pub tuned: Option<Tuned<B>>,
    /// A classifier's head.
    pub head: Option<Head<B>>,
}

impl<B: Backend> From<Reft<B>> for Learned<B> {
    fn from(reft: Reft<B>) -> Self {
        Self { reft, tuned: None, head: None }
    }
}

impl<B: Backend> Learned<B> {
    /// Parameters of the head, and of everything else.
    pub fn num_params_apart(&self) -> (usize, usize) {
        let head = self.head.as_ref().map_or(0, Module::<B>::num_params);
        (head, self.num_params() - head)
    }

    /// Blocks of a model of `n_layers` whose states a training pass has on the tape; with trained weights, all.
    pub(crate) fn n_taped(&self, n_layers: usize) -> usize {
        match self.tuned {
            Some(_) => n_layers,
            None => self.reft.config().n_taped(n_layers),
        }
    }

    /// What is trained.
    pub fn trained(&self) -> Trained {
        match &self.tuned {
            Some(tuned) if tuned.lora().is_some() => Trained::Lora,
            Some(tuned) if tuned.names().iter().all(|name| name.name.ends_with(".bias")) => Trained::Bitfit,
            Some(_) => Trained::Full,
            None if self.reft.edits().is_empty() => Trained::HeadOnly,
            None => Trained::Interventions,
        }
    }

    /// Writes an adapter's folder.
    ///
    /// # Errors
    /// If a file cannot be written. Each file is replaced as a whole or not at all.
    pub fn save(&self, folder: &Path, origin: &Origin) -> Result<(), AdapterError> {
        let adapter = Adapter {
            reft: self.reft.clone(),
            base_model: origin.base.clone(),
            template: origin.template.clone(),
            trained: self.trained(),
            task: origin.task.clone(),
            head: self.head.clone(),
        };
        adapter.save(folder)?;
        match &self.tuned {
            Some(tuned) => peft::save(folder, tuned, self.head.as_ref(), &origin.base.name, origin.names),
            None => Ok(()),
        }
    }
}

/// What an adapter remembers beside its values.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The model.
    pub base: BaseModel,
    /// The prompt template; empty for classifiers.
    pub template: String,
    /// What a classifier is trained for.
    pub task: Option<TaskConfig>,
    /// How PEFT names the model's parts.
    pub names: PeftNames,
}

/// The baseline that an adapter was trained with, if it is one that changes weights.
///
/// # Errors
/// If LoRA's settings cannot be read.
pub fn tuning_of(folder: &Path, trained: Trained) -> Result<Option<Tuning>, AdapterError> {
    Ok(match trained {
        Trained::Interventions | Trained::HeadOnly => None,
        Trained::Bitfit => Some(Tuning::Bitfit),
        Trained::Full => Some(Tuning::Full),
        Trained::Lora => {
            let config: LoraConfig = peft::read_lora_config(folder)?;
            Some(Tuning::Lora(config))
        }
    })
}

/// The trained weights of an adapter, if it is a baseline's.
///
/// # Errors
/// If a file is missing or damaged, or does not fit the model.
pub fn load_tuned<B: Backend>(
    folder: &Path,
    trained: Trained,
    tensors: &NamedTensors<B>,
    names: PeftNames,
    device: &B::Device,
) -> Result<Option<Tuned<B>>, TunedFileError> {
    match tuning_of(folder, trained)? {
        Some(tuning) => Ok(Some(peft::load(folder, &tuning, tensors, names, device)?)),
        None => Ok(None),
    }
}

impl<A: AutodiffBackend> Learned<A> {
    /// The same with all parameters tracked, to be trained.
    pub fn trainable(learned: Learned<A::InnerBackend>) -> Self {
        trainable(learned)
    }
}

/// Moves the gradients of one module out of those of a larger one.
pub(crate) fn take_gradients<A: AutodiffBackend, M: Module<A>>(
    grads: &mut GradientsParams,
    module: &M,
) -> GradientsParams {
    struct Take<'a> {
        from: &'a mut GradientsParams,
        to: GradientsParams,
    }
    impl<A: AutodiffBackend> ModuleVisitor<A> for Take<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
            if let Some(grad) = self.from.remove::<A::InnerBackend, D>(param.id) {
                self.to.register(param.id, grad);
            }
        }
    }
    let mut take = Take { from: grads, to: GradientsParams::new() };
    module.visit(&mut take);
    take.to
}
