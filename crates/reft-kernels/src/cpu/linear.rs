//! Products with the matrix of a frozen linear map, in any of the forms that it is stored in.
//!
//! A matrix that is not stored in `f32` is never widened as a whole. The product with many rows
//! goes tile by tile, and each tile widens the part of the matrix that it needs into a buffer that
//! stays in the cache. The product with few rows is bound by the reading of the matrix: it widens
//! the weights in registers, on the way from memory into the sum.
//!
//! The tiles depend on the shapes alone, so a result has the same bits for any number of threads.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::product::product_at;
use super::simd::{Simd, WithSimd, dispatch};

/// The matrix `W: [d_out, d_in]` of a linear map, row by row, in the form that it is stored in.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// The weights themselves.
    F32(&'a [f32]),
    /// Weights in `bf16`.
    Bf16(&'a [bf16]),
    /// Weights in `f16`.
    F16(&'a [f16]),
    /// Weights `value · scale`, with one scale for each `block` consecutive values. A block is 16,
    /// 32, 64, … weights of one row.
    Int8 {
        /// One value for each weight.
        values: &'a [i8],
        /// One scale for each block.
        scales: &'a [f32],
        /// Number of weights in a block.
        block: usize,
    },
    /// As [`Weight::Int8`], with values from −8 to 7 that take four bits (two's complement).
    Int4 {
        /// Two values in each byte, the first in the low half.
        packed: &'a [u8],
        /// One scale for each block.
        scales: &'a [f32],
        /// Number of weights in a block.
        block: usize,
    },
}

/// Up to this number of rows, [`linear`] widens the weights in registers.
const FEW_ROWS: usize = 16;

/// How many rows of the result are in a tile of a product with many rows, at least and at most.
/// Each tile brings its part of the matrix into the order that gemm needs, which pays with the
/// number of rows.
const TILE_ROWS: [usize; 2] = [128, 512];

/// Columns of the result in one tile; a multiple of what gemm's kernels compute at once.
const TILE_COLUMNS: usize = 192;

/// How many products are summed up at once in a tile whose weights have to be widened. A buffer
/// takes at most `4 · TILE_DEPTH · TILE_COLUMNS` bytes.
const TILE_DEPTH: usize = 768;

/// How many tiles there should be, to keep several threads busy.
const TILES: usize = 4;

/// Number of multiplications that are worth a second thread.
const PARALLEL: usize = 1 << 19;

/// `y = x Wᵀ + b`
///
/// `x: [n, d_in]`, `bias: [d_out]`; returns `y: [n, d_out]`.
pub fn linear(x: &[f32], weight: Weight, bias: Option<&[f32]>, [n, d_in, d_out]: [usize; 3]) -> Vec<f32> {
    assert_eq!(x.len(), n * d_in, "x has the shape [n, d_in]");
    assert!(bias.is_none_or(|bias| bias.len() == d_out), "the bias has the shape [d_out]");
    weight.check(d_in, d_out);
    let sizes = [n, d_in, d_out];
    if n <= FEW_ROWS {
        return few_rows(x, weight, bias, sizes);
    }
    Product::forward(x, weight, bias, sizes).new_vec()
}

/// The gradient of the input of [`linear`], `dx = dy W`.
///
/// `grad` is `dy: [n, d_out]`; returns `dx: [n, d_in]`.
pub fn linear_backward(grad: &[f32], weight: Weight, [n, d_in, d_out]: [usize; 3]) -> Vec<f32> {
    Product::backward(grad, weight, [n, d_in, d_out]).new_vec()
}

/// `y = a B + b`, with `B = Wᵀ` or `B = W`.
pub(crate) struct Product<'a> {
    /// `[n, depth]`
    a: &'a [f32],
    /// `W: [d_out, d_in]`
    weight: Weight<'a>,
    /// Whether `B` is `Wᵀ`.
    transposed: bool,
    d_in: usize,
    /// `[n, depth, columns]`, with `B: [depth, columns]` and `y: [n, columns]`.
    sizes: [usize; 3],
    /// `b: [columns]`
    bias: Option<&'a [f32]>,
    /// Whether several threads share the tiles.
    parallel: bool,
}

/// A pointer to a result whose tiles are written by several threads.
#[derive(Clone, Copy)]
struct Tiles(*mut f32);

// SAFETY: every thread writes tiles of its own.
unsafe impl Send for Tiles {}
// SAFETY: as above.
unsafe impl Sync for Tiles {}

impl Tiles {
    /// A pointer to a number of the result.
    fn at(self, index: usize) -> *mut f32 {
        self.0.wrapping_add(index)
    }
}

impl<'a> Product<'a> {
    /// The product of [`linear`].
    pub(crate) fn forward(
        x: &'a [f32],
        weight: Weight<'a>,
        bias: Option<&'a [f32]>,
        sizes @ [n, d_in, d_out]: [usize; 3],
    ) -> Self {
        assert_eq!(x.len(), n * d_in, "x has the shape [n, d_in]");
        assert!(bias.is_none_or(|bias| bias.len() == d_out), "the bias has the shape [d_out]");
        weight.check(d_in, d_out);
        Self { a: x, weight, transposed: true, d_in, sizes, bias, parallel: true }
    }

    /// The product of [`linear_backward`].
    pub(crate) fn backward(grad: &'a [f32], weight: Weight<'a>, [n, d_in, d_out]: [usize; 3]) -> Self {
        assert_eq!(grad.len(), n * d_out, "grad has the shape [n, d_out]");
        weight.check(d_in, d_out);
        let sizes = [n, d_out, d_in];
        Self { a: grad, weight, transposed: false, d_in, sizes, bias: None, parallel: true }
    }

    /// The same product in the thread that asks for it.
    pub(crate) fn in_one_thread(self) -> Self {
        Self { parallel: false, ..self }
    }

    /// The product in memory of its own.
    pub(crate) fn new_vec(&self) -> Vec<f32> {
        let [n, _, columns] = self.sizes;
        let mut y = Vec::with_capacity(n * columns);
        // SAFETY: `y` has room for `n · columns` numbers, and every one of them is written.
        unsafe {
            self.write(y.as_mut_ptr());
            y.set_len(n * columns);
        }
        y
    }

    /// Writes all numbers of `y`.
    ///
    /// # Safety
    ///
    /// `y` has room for `n · columns` numbers.
    unsafe fn write(&self, y: *mut f32) {
        let [n, depth, columns] = self.sizes;
        let across = columns.div_ceil(TILE_COLUMNS);
        let [least, most] = TILE_ROWS;
        let tile_rows = even_part(n, (n * across / TILES).clamp(least, most));
        let tiles = n.div_ceil(tile_rows) * across;
        let y = Tiles(y);
        let write = |buffer: &mut Vec<f32>, tile: usize| {
            let rows = part(tile / across, tile_rows, n);
            let columns = part(tile % across, TILE_COLUMNS, columns);
            // SAFETY: the tile lies in `y`, and no two tiles overlap.
            unsafe { self.write_tile(y, rows, columns, buffer) }
        };
        if self.parallel && tiles > 1 && n * depth * columns >= PARALLEL {
            (0..tiles).into_par_iter().for_each_init(Vec::new, write);
        } else {
            let mut buffer = Vec::new();
            (0..tiles).for_each(|tile| write(&mut buffer, tile));
        }
    }

    /// Writes the numbers of `y` in some rows and columns.
    ///
    /// # Safety
    ///
    /// As for [`Product::write`], and nothing else uses these numbers of `y`.
    unsafe fn write_tile(&self, y: Tiles, rows: Range<usize>, columns: Range<usize>, buffer: &mut Vec<f32>) {
        let [_, depth, width] = self.sizes;
        if let Some(bias) = self.bias {
            let bias = &bias[columns.clone()];
            for row in rows.clone() {
                let y = y.at(row * width + columns.start);
                // SAFETY: these are the numbers of this tile in one row.
                unsafe { y.copy_from_nonoverlapping(bias.as_ptr(), bias.len()) }
            }
        }
        let step = match self.weight {
            Weight::F32(_) => depth.max(1),
            _ => even_part(depth, TILE_DEPTH),
        };
        let mut add = self.bias.is_some();
        // A product without any depth still writes its zeros.
        for start in (0..depth.max(1)).step_by(step) {
            let terms = start..depth.min(start + step);
            let (rows_of_w, columns_of_w) = if self.transposed {
                (columns.clone(), terms.clone())
            } else {
                (terms.clone(), columns.clone())
            };
            let (w, stride) = self.weight.panel(rows_of_w, columns_of_w, self.d_in, buffer);
            let strides = if self.transposed { [1, stride] } else { [stride, 1] };
            let a = &self.a[rows.start * depth..rows.end * depth];
            // SAFETY: the sizes and strides stay inside of the tile of `y`, of the rows of `a`
            // and of the panel of the matrix.
            unsafe {
                product_at(
                    [rows.len(), columns.len(), terms.len()],
                    1.0,
                    (a.as_ptr().wrapping_add(terms.start), [depth, 1]),
                    (w.as_ptr(), strides),
                    (y.at(rows.start * width + columns.start), [width, 1]),
                    add,
                );
            }
            add = true;
        }
    }
}

/// Whether rows of `d_in` weights can have blocks of this many weights.
pub(super) fn is_block(block: usize, d_in: usize) -> bool {
    block >= 16 && block.is_power_of_two() && d_in.is_multiple_of(block)
}

/// The size of the smallest equal parts of `n` items that are not larger than `most`, but a multiple
/// of 16.
fn even_part(n: usize, most: usize) -> usize {
    n.div_ceil(n.div_ceil(most).max(1)).next_multiple_of(16).max(16)
}

/// The `i`-th of the parts of `size` items, where the last of the `n` items end it.
fn part(i: usize, size: usize, n: usize) -> Range<usize> {
    i * size..n.min((i + 1) * size)
}

impl Weight<'_> {
    /// Checks the sizes against the shape of the matrix.
    fn check(&self, d_in: usize, d_out: usize) {
        let n = d_in * d_out;
        let blocks = |scales: &[f32], block: usize| {
            assert!(is_block(block, d_in), "a block has 16, 32, 64, … weights of one row");
            assert_eq!(scales.len(), n / block, "there is one scale for each block");
        };
        let len = match *self {
            Weight::F32(values) => values.len(),
            Weight::Bf16(values) => values.len(),
            Weight::F16(values) => values.len(),
            Weight::Int8 { values, scales, block } => {
                blocks(scales, block);
                values.len()
            }
            Weight::Int4 { packed, scales, block } => {
                blocks(scales, block);
                packed.len() * 2
            }
        };
        assert_eq!(len, n, "the weight has the shape [d_out, d_in]");
    }

    /// The weights in some rows and columns, in `f32`, and how far apart two rows are.
    ///
    /// They are widened into the buffer if the matrix is not in `f32`.
    fn panel<'b>(
        &'b self,
        rows: Range<usize>,
        columns: Range<usize>,
        d_in: usize,
        buffer: &'b mut Vec<f32>,
    ) -> (&'b [f32], usize) {
        if let Weight::F32(values) = *self {
            return (&values[(rows.start * d_in + columns.start).min(values.len())..], d_in);
        }
        let width = columns.len();
        let size = rows.len() * width;
        if buffer.len() < size {
            buffer.resize(size, 0.0);
        }
        self.visit(WidenPanel { rows, columns, d_in, buffer });
        (buffer, width)
    }

    /// Runs something that is compiled for each form of the weights.
    fn visit<V: Visit>(&self, visit: V) {
        match *self {
            Weight::F32(values) => visit.run(values),
            Weight::Bf16(values) => visit.run(values),
            Weight::F16(values) => visit.run(values),
            Weight::Int8 { values, scales, block } => {
                visit.run(Scaled { values: Bytes(values), scales, block })
            }
            Weight::Int4 { packed, scales, block } => {
                visit.run(Scaled { values: Nibbles(packed), scales, block })
            }
        }
    }
}

/// Something that is compiled for each form of the weights.
trait Visit {
    fn run(self, weights: impl Weights);
}

/// Weights that are widened into a vector at a time.
trait Weights: Copy + Sync {
    /// `len` weights from an index on, then zeros. There are no more of them than a vector holds.
    fn load<S: Simd>(self, simd: S, start: usize, len: usize) -> S::f32s;

    /// Where the weights from an index on begin in memory, which may be behind the last of them.
    fn address(self, index: usize) -> *const u8;
}

impl Weights for &[f32] {
    #[inline(always)]
    fn load<S: Simd>(self, simd: S, start: usize, len: usize) -> S::f32s {
        load(simd, &self[start..start + len])
    }

    #[inline(always)]
    fn address(self, index: usize) -> *const u8 {
        self.as_ptr().wrapping_add(index).cast()
    }
}

impl Weights for &[bf16] {
    #[inline(always)]
    fn load<S: Simd>(self, simd: S, start: usize, len: usize) -> S::f32s {
        // A bf16 is the upper half of the f32 with the same value.
        vector(
            simd,
            &self[start..start + len],
            #[inline(always)]
            |x| f32::from_bits(u32::from(x.to_bits()) << 16),
        )
    }

    #[inline(always)]
    fn address(self, index: usize) -> *const u8 {
        self.as_ptr().wrapping_add(index).cast()
    }
}

impl Weights for &[f16] {
    #[inline(always)]
    fn load<S: Simd>(self, simd: S, start: usize, len: usize) -> S::f32s {
        vector(simd, &self[start..start + len], widen_f16)
    }

    #[inline(always)]
    fn address(self, index: usize) -> *const u8 {
        self.as_ptr().wrapping_add(index).cast()
    }
}

/// `f32::from`, in operations that exist for vectors.
#[inline(always)]
fn widen_f16(x: f16) -> f32 {
    /// Makes up for the difference of the biases of the two exponents, 127 − 15.
    const BIAS: f32 = (1_u128 << 112) as f32;
    let bits = u32::from(x.to_bits());
    let size = f32::from_bits((bits & 0x7fff) << 13) * BIAS;
    // An exponent of ones stands for infinity or no number.
    let special = if size >= 65536.0 { f32::INFINITY.to_bits() } else { 0 };
    f32::from_bits(size.to_bits() | special | (bits & 0x8000) << 16)
}

/// Weights `value · scale`, with one scale for each block.
#[derive(Clone, Copy)]
struct Scaled<'a, V> {
    values: V,
    scales: &'a [f32],
    block: usize,
}

impl<V: Weights> Weights for Scaled<'_, V> {
    #[inline(always)]
    fn load<S: Simd>(self, simd: S, start: usize, len: usize) -> S::f32s {
        // Vectors start at multiples of their length in a row, so none reaches into two blocks.
        let scale = self.scales[start >> self.block.trailing_zeros()];
        simd.mul_f32s(self.values.load(simd, start, len), simd.splat_f32s(scale))
    }

    #[inline(always)]
    fn address(self, index: usize) -> *const u8 {
        self.values.address(index)
    }
}

/// Values of eight bits.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [i8]);

impl Weights for Bytes<'_> {
    #[inline(always)]
    fn load<S: Simd>(self, simd: S, start: usize, len: usize) -> S::f32s {
        vector(simd, &self.0[start..start + len], f32::from)
    }

    #[inline(always)]
    fn address(self, index: usize) -> *const u8 {
        self.0.as_ptr().wrapping_add(index).cast()
    }
}

/// Two values of four bits in each byte.
#[derive(Clone, Copy)]
struct Nibbles<'a>(&'a [u8]);

impl Weights for Nibbles<'_> {
    #[inline(always)]
    fn load<S: Simd>(self, simd: S, start: usize, len: usize) -> S::f32s {
        let mut vector = simd.splat_f32s(0.0);
        let lanes = bytemuck::cast_slice_mut::<S::f32s, f32>(std::slice::from_mut(&mut vector));
        if S::F32_LANES == 1 {
            let byte = self.0[start / 2];
            let byte = if start.is_multiple_of(2) { byte << 4 } else { byte };
            lanes[0] = f32::from(byte as i8 >> 4);
            return vector;
        }
        let bytes = &self.0[start / 2..][..len / 2];
        for (i, lane) in lanes[..len].iter_mut().enumerate() {
            let byte = u32::from(bytes[i / 2]);
            *lane = ((byte << (28 - i % 2 * 4)) as i32 >> 28) as f32;
        }
        vector
    }

    #[inline(always)]
    fn address(self, index: usize) -> *const u8 {
        self.0.as_ptr().wrapping_add(index / 2)
    }
}

/// Asks for the line of memory at an address to be brought into the cache, if the processor can.
#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: it is a hint, valid for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// A vector of numbers, filled up with zeros.
#[inline(always)]
fn load<S: Simd>(simd: S, x: &[f32]) -> S::f32s {
    match S::as_simd_f32s(x) {
        (&[vector], []) => vector,
        _ => simd.partial_load_f32s(x),
    }
}

/// A vector of widened values, filled up with zeros.
#[inline(always)]
fn vector<S: Simd, T: Copy>(simd: S, values: &[T], widen: impl Fn(T) -> f32) -> S::f32s {
    let mut vector = simd.splat_f32s(0.0);
    let lanes = bytemuck::cast_slice_mut::<S::f32s, f32>(std::slice::from_mut(&mut vector));
    for (lane, &value) in lanes.iter_mut().zip(values) {
        *lane = widen(value);
    }
    vector
}

/// Widens the weights in some rows and columns into a buffer, row by row.
struct WidenPanel<'a> {
    rows: Range<usize>,
    columns: Range<usize>,
    d_in: usize,
    buffer: &'a mut [f32],
}

impl Visit for WidenPanel<'_> {
    fn run(self, weights: impl Weights) {
        dispatch(Widen { panel: self, weights });
    }
}

struct Widen<'a, W> {
    panel: WidenPanel<'a>,
    weights: W,
}

impl<W: Weights> WithSimd for Widen<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let WidenPanel { rows, columns, d_in, buffer } = self.panel;
        for (row, out) in rows.zip(buffer.chunks_exact_mut(columns.len().max(1))) {
            let mut start = row * d_in + columns.start;
            let (vectors, rest) = S::as_mut_simd_f32s(out);
            for vector in vectors {
                *vector = self.weights.load(simd, start, S::F32_LANES);
                start += S::F32_LANES;
            }
            if !rest.is_empty() {
                let vector = self.weights.load(simd, start, rest.len());
                simd.partial_store_f32s(rest, vector);
            }
        }
    }
}

/// Rows of the matrix that one task multiplies with all rows of `x`.
const TASK_ROWS: usize = 32;

/// [`linear`] for few rows: every weight is read once.
fn few_rows(x: &[f32], weight: Weight, bias: Option<&[f32]>, [n, d_in, d_out]: [usize; 3]) -> Vec<f32> {
    // The transpose of the result, so that each task has a part of its own.
    let mut columns = vec![0.0; d_out * n];
    if columns.is_empty() {
        return columns;
    }
    weight.visit(ColumnTasks { x, bias, n, d_in, columns: &mut columns });
    if n == 1 {
        return columns;
    }
    let mut y = Vec::with_capacity(n * d_out);
    y.extend((0..n).flat_map(|i| columns[i..].iter().step_by(n)));
    y
}

/// The columns of the result in [`few_rows`], in tasks of [`TASK_ROWS`].
struct ColumnTasks<'a> {
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    n: usize,
    d_in: usize,
    columns: &'a mut [f32],
}

impl Visit for ColumnTasks<'_> {
    fn run(self, weights: impl Weights) {
        let Self { x, bias, n, d_in, columns } = self;
        let is_large = columns.len() * d_in >= PARALLEL;
        let write = |(task, columns): (usize, &mut [f32])| {
            let first = task * TASK_ROWS;
            let bias = bias.map(|bias| &bias[first..first + columns.len() / n]);
            dispatch(Columns { x, weights, first, bias, n, d_in, columns });
        };
        if is_large {
            columns.par_chunks_mut(TASK_ROWS * n).enumerate().for_each(write);
        } else {
            columns.chunks_mut(TASK_ROWS * n).enumerate().for_each(write);
        }
    }
}

/// The products of the rows `first`, `first + 1`, … of the matrix with all rows of `x`.
struct Columns<'a, W> {
    x: &'a [f32],
    weights: W,
    first: usize,
    bias: Option<&'a [f32]>,
    n: usize,
    d_in: usize,
    /// `[rows, n]`
    columns: &'a mut [f32],
}

impl<W: Weights> WithSimd for Columns<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, weights, first, bias, n, d_in, columns } = self;
        let rows = columns.len() / n;
        let mut row = 0;
        while row < rows {
            let of_four = rows - row >= 4;
            let mut i = 0;
            while i < n {
                let start = (first + row) * d_in;
                let x = &x[i * d_in..];
                let columns = &mut columns[row * n + i..];
                match (of_four, n - i) {
                    (true, 4..) => tile::<S, W, 4, 4>(simd, weights, start, x, d_in, columns, n),
                    (true, _) => tile::<S, W, 4, 1>(simd, weights, start, x, d_in, columns, n),
                    (false, 4..) => tile::<S, W, 1, 4>(simd, weights, start, x, d_in, columns, n),
                    (false, _) => tile::<S, W, 1, 1>(simd, weights, start, x, d_in, columns, n),
                }
                i += if n - i >= 4 { 4 } else { 1 };
            }
            row += if of_four { 4 } else { 1 };
        }
        if let Some(bias) = bias {
            for (row, bias) in columns.chunks_exact_mut(n).zip(bias) {
                row.iter_mut().for_each(|y| *y += bias);
            }
        }
    }
}

/// The largest number of weights between those that are read and those that are brought into the cache meanwhile.
const NEAR: usize = 1 << 13;

/// The products of `ROWS` rows of the matrix, from an index on, with the first `N` rows of `x`.
///
/// They are written to `columns: [ROWS, n]`.
#[inline(always)]
fn tile<S: Simd, W: Weights, const ROWS: usize, const N: usize>(
    simd: S,
    weights: W,
    start: usize,
    x: &[f32],
    d_in: usize,
    columns: &mut [f32],
    n: usize,
) {
    let x: [&[f32]; N] = std::array::from_fn(|i| &x[i * d_in..(i + 1) * d_in]);
    let starts: [usize; ROWS] = std::array::from_fn(|row| start + row * d_in);
    // The rows after these, or the rest of long ones: processors do not look beyond a page by themselves.
    let ahead = if ROWS * d_in <= NEAR { ROWS * d_in } else { NEAR / 4 };
    let mut sums = [[simd.splat_f32s(0.0); N]; ROWS];
    let rest = d_in % S::F32_LANES;
    for k in (0..d_in - rest).step_by(S::F32_LANES) {
        for start in starts {
            prefetch(weights.address(start + k + ahead));
        }
        add_terms(simd, weights, starts, x, k, S::F32_LANES, &mut sums);
    }
    if rest > 0 {
        add_terms(simd, weights, starts, x, d_in - rest, rest, &mut sums);
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (y, sum) in columns[row * n..].iter_mut().zip(sums) {
            *y = simd.reduce_sum_f32s(sum);
        }
    }
}

/// Adds the terms `k..k + len` of the products of rows of the matrix with rows of `x` to the sums.
#[inline(always)]
fn add_terms<S: Simd, W: Weights, const ROWS: usize, const N: usize>(
    simd: S,
    weights: W,
    starts: [usize; ROWS],
    x: [&[f32]; N],
    k: usize,
    len: usize,
    sums: &mut [[S::f32s; N]; ROWS],
) {
    let mut vectors = [simd.splat_f32s(0.0); N];
    for i in 0..N {
        vectors[i] = load(simd, &x[i][k..k + len]);
    }
    for row in 0..ROWS {
        let w = weights.load(simd, starts[row] + k, len);
        for i in 0..N {
            sums[row][i] = simd.mul_add_e_f32s(w, vectors[i], sums[row][i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The matrix that [`WidenPanel`] gives and the products of [`Columns`], with one instruction set.
    struct Run<'a> {
        weight: Weight<'a>,
        x: &'a [f32],
        sizes: [usize; 3],
    }

    impl WithSimd for Run<'_> {
        type Output = (Vec<f32>, Vec<f32>);

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
            struct Both<'a, S>(S, &'a [f32], [usize; 3], &'a mut [f32], &'a mut [f32]);
            impl<S: Simd> Visit for Both<'_, S> {
                fn run(self, weights: impl Weights) {
                    let Self(simd, x, [n, d_in, d_out], buffer, columns) = self;
                    let panel = WidenPanel { rows: 0..d_out, columns: 0..d_in, d_in, buffer };
                    Simd::vectorize(simd, Widen { panel, weights });
                    Simd::vectorize(simd, Columns { x, weights, first: 0, bias: None, n, d_in, columns });
                }
            }
            let [n, d_in, d_out] = self.sizes;
            let (mut matrix, mut columns) = (vec![0.0; d_in * d_out], vec![0.0; n * d_out]);
            self.weight.visit(Both(simd, self.x, self.sizes, &mut matrix, &mut columns));
            (matrix, columns)
        }
    }

    #[test]
    fn all_instruction_sets_read_the_same_weights() {
        let (n, d_in, d_out, block) = (5, 96, 7, 32);
        let size = d_in * d_out;
        let bits = |i: usize| (i * 40_503 % 65_537) as u16;
        let bf16: Vec<bf16> = (0..size).map(|i| bf16::from_bits(bits(i) & 0xbfff)).collect();
        let f16: Vec<f16> = (0..size).map(|i| f16::from_bits(bits(i) & 0xbfff)).collect();
        let values: Vec<i8> = (0..size).map(|i| bits(i) as i8).collect();
        let packed: Vec<u8> = (0..size / 2).map(|i| bits(i) as u8).collect();
        let scales: Vec<f32> = (0..size / block).map(|i| 1.0 + i as f32).collect();
        let x: Vec<f32> = (0..n * d_in).map(|i| (i % 7) as f32 - 3.0).collect();
        for weight in [
            Weight::Bf16(&bf16),
            Weight::F16(&f16),
            Weight::Int8 { values: &values, scales: &scales, block },
            Weight::Int4 { packed: &packed, scales: &scales, block },
        ] {
            let sizes = [n, d_in, d_out];
            let run = || Run { weight, x: &x, sizes };
            let (matrix, columns) = dispatch(run());
            let mut others = vec![run().with_simd(pulp::Scalar)];
            #[cfg(target_arch = "x86_64")]
            others.extend(pulp::x86::V3::try_new().map(|simd| run().with_simd(simd)));
            for (other_matrix, other_columns) in others {
                assert_eq!(other_matrix, matrix, "{weight:?}");
                for (x, y) in columns.iter().zip(other_columns) {
                    let size = columns.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
                    assert!((x - y).abs() <= 1e-5 * size, "{weight:?}: {x} is not {y}");
                }
            }
        }
    }
}
