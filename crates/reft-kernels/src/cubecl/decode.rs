//! Attention of one query per text, as in decoding.

use super::{
    launch::{Cubes, address_type, empty_like, rows, vector_size},
    reduce::{LOWEST, largest, sum, total},
    softmax::Seen,
};
use crate::attention::Heads;
use burn_cubecl::{CubeRuntime, cubecl, tensor::CubeTensor};
use cubecl::prelude::*;

/// Attention of one query per text: a workgroup for each query and head. It goes through the keys in chunks of one key per
/// unit, and keeps the largest score, the sum and the output so far
/// ([FlashAttention](https://arxiv.org/abs/2205.14135)).
///
/// # Shapes
/// - queries, output `[n, heads · dim]`; keys, values `[n · slots, heads / group · dim]`; seen a row per query, as [`Seen`]
///   reads it
#[cube(launch_unchecked, address_type = "dynamic")]
fn decode_kernel<F: Float, I: Int, N: Size>(
    queries: &Tensor<Vector<F, N>>,
    keys: &Tensor<Vector<F, N>>,
    values: &Tensor<Vector<F, N>>,
    seen: &Tensor<I>,
    output: &mut Tensor<Vector<F, N>>,
    heads: usize,
    used: usize,
    group: usize,
    scale: f32,
    // Number of vectors of a head.
    #[comptime] len: usize,
    #[comptime] units: u32,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    if CUBE_POS >= queries.shape(0) * heads {
        terminate!();
    }
    let (text, head) = (CUBE_POS / heads, CUBE_POS % heads);
    let seen = Seen::of_row::<I>(seen, text);
    let first_key = text * (keys.shape(0) / queries.shape(0));
    let column = head / group * len;
    let query = text * queries.stride(0) / N::value() + head * len;

    let unit = UNIT_POS as usize;
    // The columns of the output are shared out to parts of the keys.
    let parts = comptime!(units as usize / len);
    let (part, i) = (unit / len, unit % len);
    let mut weights = SharedMemory::<f32>::new(comptime!(units as usize));
    let mut most = f32::new(LOWEST);
    let mut exps = f32::new(0.0);
    let mut mixed = Vector::<f32, N>::new(0.0);
    for chunk in range_stepped(0, used, comptime!(units as usize)) {
        let is_seen = seen.contains(chunk + unit);
        let mut score = f32::new(LOWEST);
        if is_seen {
            let key = (first_key + chunk + unit) * keys.stride(0) / N::value() + column;
            let mut products = Vector::<f32, N>::new(0.0);
            for j in 0..len {
                products +=
                    Vector::<f32, N>::cast_from(queries[query + j]) * Vector::cast_from(keys[key + j]);
            }
            score = total::<N>(products) * scale;
        }
        let more = max(most, largest(score, units));
        let mut weight = f32::new(0.0);
        if is_seen {
            weight = (score - more).exp();
        }
        weights[unit] = weight;
        let factor = (most - more).exp();
        most = more;
        // All weights are written when this returns.
        exps = exps * factor + sum(weight, units);
        mixed *= Vector::new(factor);
        if part < parts {
            for other in range_stepped(part, min(used - chunk, comptime!(units as usize)), parts) {
                let weight = weights[other];
                if weight > 0.0 {
                    let value = (first_key + chunk + other) * values.stride(0) / N::value() + column + i;
                    mixed += Vector::<f32, N>::cast_from(values[value]) * Vector::new(weight);
                }
            }
        }
        sync_cube();
    }

    let mut mixtures = SharedMemory::<Vector<f32, N>>::new(comptime!(units as usize));
    mixtures[unit] = mixed;
    sync_cube();
    if unit < len {
        let mut all = Vector::<f32, N>::new(0.0);
        if exps > 0.0 {
            for part in 0..parts {
                all += mixtures[part * len + unit];
            }
            all /= Vector::new(exps);
        }
        output[text * output.stride(0) / N::value() + head * len + unit] = Vector::cast_from(all);
    }
}

/// The number of vectors of a head and of numbers in each; `None` if a workgroup has too few units for them.
fn vectors<R: CubeRuntime>(tensors: [&CubeTensor<R>; 3], dim: usize) -> Option<[usize; 2]> {
    let mut size = vector_size(&tensors);
    while !dim.is_multiple_of(size) {
        size /= 2;
    }
    let len = dim / size;
    (len <= Cubes::most_units(tensors[0]) as usize).then_some([len, size])
}

/// Attention; `None` if the heads are too large. Rows of keys and values are not seen beyond the first `used` of each text.
///
/// # Shapes
/// - queries, output `[n, heads.queries · dim]`; keys, values `[n · slots, heads.keys · dim]`; seen `[n, 5]`
pub(super) fn decode<R: CubeRuntime>(
    [queries, keys, values]: [CubeTensor<R>; 3],
    seen: CubeTensor<R>,
    heads: Heads,
    used: usize,
) -> Option<CubeTensor<R>> {
    let [queries, keys, values] = [queries, keys, values].map(rows);
    let [len, size] = vectors([&queries, &keys, &values], heads.dim)?;
    let output = empty_like(&queries);
    let n = queries.meta.shape()[0];
    let cubes = Cubes::for_rows(&queries, n * heads.queries, used.max(len));
    let dtypes = [queries.dtype.into(), seen.dtype.into()];
    // SAFETY: the kernel stays within its head, and within the keys that its text sees.
    unsafe {
        decode_kernel::launch_unchecked::<R>(
            &output.client,
            cubes.count,
            cubes.dim,
            address_type(&[&queries, &keys, &values, &output]),
            size,
            queries.into_tensor_arg(),
            keys.into_tensor_arg(),
            values.into_tensor_arg(),
            seen.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            heads.queries,
            used,
            heads.group(),
            heads.scale() as f32,
            len,
            cubes.units,
            dtypes,
        );
    }
    Some(output)
}
