//! The operations in terms of Burn's own, for every backend.

mod attention;
mod linear;
mod norm;
mod pointwise;

#[cfg(feature = "cubecl")]
pub(crate) use attention::{Layout, all_keys};
pub(crate) use attention::{attention, attention_backward};
#[cfg(feature = "cubecl")]
pub(crate) use linear::dense;
pub(crate) use linear::{linear, linear_backward, nll, rows_of_logits, write_rows};
pub(crate) use norm::{layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};
pub(crate) use pointwise::{gelu, gelu_backward, rotary, swiglu, swiglu_backward};
