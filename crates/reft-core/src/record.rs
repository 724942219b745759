//! Modules whose records are complete.
//!
//! The records that Burn derives hold parameters alone: a module keeps its own configuration when it loads one. The records
//! of this crate hold the configuration too, so that loading one gives the module that was saved, whatever it is loaded
//! into: another seed, rank or method. Tensors that follow from the others are computed, not recorded.

use burn::{
    module::Param,
    tensor::{Tensor, backend::Backend},
};
use serde::{Serialize, de::DeserializeOwned};

/// Implements `Module` for a struct of `modules`, which hold tensors, and `state`, which is cloned. The record is built by
/// the struct's `to_record` and read by its `with_record`, which also gets the module that the record is loaded into.
#[macro_export]
#[doc(hidden)]
macro_rules! complete_module {
    ($name:ident, record: $record:ident, modules: [$($module:ident),+], state: [$($state:ident),*]) => {
        impl<B: burn::tensor::backend::Backend> burn::module::Module<B> for $name<B> {
            type Record = $record<B>;

            fn collect_devices(&self, devices: burn::module::Devices<B>) -> burn::module::Devices<B> {
                $(let devices = burn::module::Module::<B>::collect_devices(&self.$module, devices);)+
                devices
            }

            fn fork(self, device: &B::Device) -> Self {
                $(let $module = burn::module::Module::<B>::fork(self.$module, device);)+
                Self { $($module,)+ $($state: self.$state),* }
            }

            fn to_device(self, device: &B::Device) -> Self {
                $(let $module = burn::module::Module::<B>::to_device(self.$module, device);)+
                Self { $($module,)+ $($state: self.$state),* }
            }

            fn visit<V: burn::module::ModuleVisitor<B>>(&self, visitor: &mut V) {
                const TYPE: &str = concat!("Struct:", stringify!($name));
                $(
                    visitor.enter_module(stringify!($module), TYPE);
                    burn::module::Module::<B>::visit(&self.$module, visitor);
                    visitor.exit_module(stringify!($module), TYPE);
                )+
            }

            fn map<M: burn::module::ModuleMapper<B>>(self, mapper: &mut M) -> Self {
                const TYPE: &str = concat!("Struct:", stringify!($name));
                $(
                    mapper.enter_module(stringify!($module), TYPE);
                    let $module = burn::module::Module::<B>::map(self.$module, mapper);
                    mapper.exit_module(stringify!($module), TYPE);
                )+
                Self { $($module,)+ $($state: self.$state),* }
            }

            fn load_record(self, record: Self::Record) -> Self {
                self.with_record(record)
            }

            fn into_record(self) -> Self::Record {
                self.to_record()
            }
        }

        impl<B: burn::tensor::backend::AutodiffBackend> burn::module::AutodiffModule<B> for $name<B> {
            type InnerModule = $name<B::InnerBackend>;

            fn valid(&self) -> Self::InnerModule {
                $(let $module = burn::module::AutodiffModule::<B>::valid(&self.$module);)+
                $name { $($module,)+ $($state: self.$state.clone()),* }
            }

            fn from_inner(module: Self::InnerModule) -> Self {
                $(let $module = burn::module::AutodiffModule::<B>::from_inner(module.$module);)+
                Self { $($module,)+ $($state: module.$state),* }
            }
        }

        impl<B: burn::tensor::backend::AutodiffBackend> burn::module::HasAutodiffModule<B>
            for $name<B::InnerBackend>
        {
            type TrainModule = $name<B>;
        }

        impl<B: burn::tensor::backend::Backend> burn::module::ModuleDisplayDefault for $name<B> {
            fn content(&self, content: burn::module::Content) -> Option<burn::module::Content> {
                content$(.add(stringify!($module), &self.$module))+.optional()
            }

            fn num_params(&self) -> usize {
                burn::module::Module::<B>::num_params(self)
            }
        }

        impl<B: burn::tensor::backend::Backend> burn::module::ModuleDisplay for $name<B> {}

        impl<B: burn::tensor::backend::Backend> std::fmt::Display for $name<B> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&burn::module::ModuleDisplay::format(self, Default::default()))
            }
        }
    };
}

/// A configuration as it is recorded.
pub fn config_text(config: &impl Serialize) -> String {
    serde_json::to_string(config).expect("plain data serializes")
}

/// A recorded configuration.
///
/// # Panics
/// If the record is of another version of this crate.
pub fn recorded_config<C: DeserializeOwned>(text: &str) -> C {
    serde_json::from_str(text)
        .unwrap_or_else(|error| panic!("a record of another version of reft-core: {error}; found {text}"))
}

/// A recorded parameter, on the device of the module that loads it and trainable if that is.
pub fn recorded_param<B: Backend, const D: usize>(
    saved: Param<Tensor<B, D>>,
    device: &B::Device,
    is_trainable: bool,
) -> Param<Tensor<B, D>> {
    let (id, tensor, _) = saved.consume();
    Param::initialized(id, tensor.to_device(device).detach().set_require_grad(is_trainable))
}
