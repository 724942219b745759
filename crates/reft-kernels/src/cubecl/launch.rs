//! What every launch needs: tensors as the kernels index them, and the numbers of workgroups and of units in each.

use burn::tensor::{
    DType, Shape, Tensor, TensorMetadata, TensorPrimitive, backend::Backend, ops::FloatTensor,
};
use burn_cubecl::{
    CubeRuntime,
    cubecl::{
        CubeCount, CubeDim, calculate_cube_count_elemwise, ir::AddressType, tensor_vector_size_parallel,
    },
    kernel::into_contiguous,
    ops::numeric::empty_device_dtype,
    tensor::CubeTensor,
};
use std::sync::OnceLock;

/// Whether the environment variable `REFT_GPU_KERNELS` turns the kernels off.
fn are_off() -> bool {
    static ARE_OFF: OnceLock<bool> = OnceLock::new();
    *ARE_OFF.get_or_init(|| std::env::var("REFT_GPU_KERNELS").is_ok_and(|choice| choice == "off"))
}

/// Whether the kernels are for a tensor.
pub(super) fn covers<B: Backend, const D: usize>(x: &Tensor<B, D>) -> bool {
    !are_off() && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) && x.shape().num_elements() > 0
}

/// A tensor as the kernels get it.
pub(super) fn primitive<B: Backend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

/// The reverse of [`primitive`].
pub(super) fn tensor<B: Backend, const D: usize>(x: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

/// A tensor whose last dimension lies in one piece and whose other dimensions are one: a matrix with a row stride. Copied if
/// it is not.
pub(super) fn rows<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let (shape, strides) = (x.meta.shape(), x.meta.strides());
    let outer = 0..shape.len().saturating_sub(2);
    let is_matrix = strides[shape.len() - 1] == 1
        && outer.into_iter().all(|dim| strides[dim] == strides[dim + 1] * shape[dim + 1]);
    if is_matrix { x } else { into_contiguous(x) }
}

/// [`rows`] that a kernel may write to, because nobody else holds them.
pub(super) fn own_rows<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let x = rows(x);
    if x.can_mut() && x.is_nonoverlapping() { x } else { rows(x.copy()) }
}

/// A tensor without values on the device of another.
pub(super) fn empty<R: CubeRuntime>(like: &CubeTensor<R>, shape: Shape, dtype: DType) -> CubeTensor<R> {
    empty_device_dtype(like.client.clone(), like.device.clone(), shape, dtype)
}

/// A tensor without values of the shape and dtype of another.
pub(super) fn empty_like<R: CubeRuntime>(x: &CubeTensor<R>) -> CubeTensor<R> {
    empty(x, x.shape(), x.dtype)
}

/// The largest number of neighbors along the last dimension that can be read at once from all tensors.
pub(super) fn vector_size<R: CubeRuntime>(tensors: &[&CubeTensor<R>]) -> usize {
    let of = |x: &&CubeTensor<R>| {
        let sizes = x.client.io_optimized_vector_sizes(x.dtype.size());
        tensor_vector_size_parallel(sizes, x.meta.shape(), x.meta.strides(), x.meta.num_dims() - 1)
    };
    tensors.iter().map(of).min().unwrap_or(1)
}

/// The type that can index all tensors.
pub(super) fn address_type<R: CubeRuntime>(tensors: &[&CubeTensor<R>]) -> AddressType {
    tensors.iter().map(|x| x.required_address_type()).max().unwrap_or_default()
}

/// Workgroups.
pub(super) struct Cubes {
    pub(super) count: CubeCount,
    pub(super) dim: CubeDim,
    /// Number of units in each, a power of two.
    pub(super) units: u32,
}

impl Cubes {
    /// The largest number of units, a power of two.
    pub(super) fn most_units<R: CubeRuntime>(x: &CubeTensor<R>) -> u32 {
        1 << x.client.properties().hardware.max_units_per_cube.clamp(1, 256).ilog2()
    }

    /// One workgroup for each of `n` rows of `len` vectors.
    pub(super) fn for_rows<R: CubeRuntime>(x: &CubeTensor<R>, n: usize, len: usize) -> Self {
        let units = (len.clamp(32, 256).next_power_of_two() as u32).min(Self::most_units(x));
        let dim = CubeDim::new_1d(units);
        Self { count: calculate_cube_count_elemwise(&x.client, n * units as usize, dim), dim, units }
    }

    /// One unit for each of `n` vectors.
    pub(super) fn for_vectors<R: CubeRuntime>(x: &CubeTensor<R>, n: usize) -> Self {
        let dim = CubeDim::new(&x.client, n);
        Self { count: calculate_cube_count_elemwise(&x.client, n, dim), dim, units: dim.num_elems() }
    }
}
