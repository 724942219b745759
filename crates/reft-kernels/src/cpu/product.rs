//! Products of matrices, in the thread that asks for them.

use gemm::Parallelism;

/// A matrix in a slice: element `(i, j)` is at `i · strides[0] + j · strides[1]`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) strides: [usize; 2],
}

/// A matrix like [`Matrix`] to write to.
pub(super) struct MatrixMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    pub(super) fn transposed(self) -> Self {
        let [rows, columns] = self.strides;
        Self { data: self.data, strides: [columns, rows] }
    }

    /// The first numbers of a row, where these are side by side.
    pub(super) fn row(self, row: usize, n_columns: usize) -> &'a [f32] {
        &self.data[row * self.strides[0]..][..n_columns]
    }
}

/// `out ← factor · A B`, or `out ← out + factor · A B`, with `A: [m, k]`, `B: [k, n]` and
/// `out: [m, n]`.
pub(super) fn product(
    [m, n, k]: [usize; 3],
    factor: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: MatrixMut<'_>,
    add: bool,
) {
    let is_inside = |rows: usize, columns: usize, strides: [usize; 2], len: usize| {
        rows == 0 || columns == 0 || (rows - 1) * strides[0] + (columns - 1) * strides[1] < len
    };
    assert!(is_inside(m, k, a.strides, a.data.len()));
    assert!(is_inside(k, n, b.strides, b.data.len()));
    assert!(is_inside(m, n, out.strides, out.data.len()));
    // SAFETY: all elements are inside of the slices, and the borrow of `out` is exclusive.
    unsafe {
        product_at(
            [m, n, k],
            factor,
            (a.data.as_ptr(), a.strides),
            (b.data.as_ptr(), b.strides),
            (out.data.as_mut_ptr(), out.strides),
            add,
        );
    }
}

/// [`product`] of matrices at addresses, with their strides.
///
/// # Safety
///
/// The elements of `A` and `B` can be read and those of `out` written, and read if the product is added to them. Nothing
/// else uses those of `out`.
pub(super) unsafe fn product_at(
    [m, n, k]: [usize; 3],
    factor: f32,
    (a, [a_row, a_column]): (*const f32, [usize; 2]),
    (b, [b_row, b_column]): (*const f32, [usize; 2]),
    (out, [out_row, out_column]): (*mut f32, [usize; 2]),
    add: bool,
) {
    // SAFETY: the caller ensures it.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            out_column as isize,
            out_row as isize,
            add,
            a,
            a_column as isize,
            a_row as isize,
            b,
            b_column as isize,
            b_row as isize,
            1.0,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
