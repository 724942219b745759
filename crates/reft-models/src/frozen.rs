//! Frozen tensors as constants on the tape of an autodiff backend.
//!
//! Models and their parts are not Burn modules: they have no parameters, so that a record of one would be empty. A model is
//! loaded from its own files, and kept beside the modules that are trained.

use burn::tensor::{Tensor, backend::AutodiffBackend};

/// Something that holds tensors of the inner backend.
pub(crate) trait Frozen<A: AutodiffBackend> {
    /// The same with tensors of the autodiff backend.
    type OnTape;

    /// Moves the tensors to the autodiff backend, without tracking them.
    fn on_tape(&self) -> Self::OnTape;
}

impl<A: AutodiffBackend, const D: usize> Frozen<A> for Tensor<A::InnerBackend, D> {
    type OnTape = Tensor<A, D>;

    fn on_tape(&self) -> Tensor<A, D> {
        Tensor::from_inner(self.clone())
    }
}

impl<A: AutodiffBackend, T: Frozen<A>> Frozen<A> for Option<T> {
    type OnTape = Option<T::OnTape>;

    fn on_tape(&self) -> Self::OnTape {
        self.as_ref().map(T::on_tape)
    }
}

impl<A: AutodiffBackend, T: Frozen<A>, U: Frozen<A>> Frozen<A> for (T, U) {
    type OnTape = (T::OnTape, U::OnTape);

    fn on_tape(&self) -> Self::OnTape {
        (self.0.on_tape(), self.1.on_tape())
    }
}

/// Implements [`Frozen`] for a struct of frozen fields and, after the semicolon, fields that are copied.
macro_rules! frozen {
    ($name:ident { $($frozen:ident),+; $($copied:ident),* }) => {
        impl<A: burn::tensor::backend::AutodiffBackend> $crate::frozen::Frozen<A> for $name<A::InnerBackend> {
            type OnTape = $name<A>;

            fn on_tape(&self) -> $name<A> {
                $name {
                    $($frozen: $crate::frozen::Frozen::<A>::on_tape(&self.$frozen),)+
                    $($copied: self.$copied),*
                }
            }
        }
    };
}
pub(crate) use frozen;
