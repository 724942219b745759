use super::{medians, numbers};
use half::{bf16, f16};
use rayon::prelude::*;
use reft_kernels::cpu::{
    linear::{Weight, linear, linear_backward},
    simd::{Simd, WithSimd, dispatch, sum},
};
use std::hint::black_box;

/// `(d_out, d_in)`
const SHAPES: [(usize, usize); 7] =
    [(192, 192), (64, 192), (512, 192), (576, 576), (1536, 576), (576, 1536), (4096, 4096)];

/// GB/s of the matrix in products with few rows, beside a plain sum of the same bytes.
pub fn few_rows() {
    for (d_out, d_in) in [(576, 576), (1536, 576), (4096, 4096)] {
        let size = d_in * d_out;
        let f32 = numbers(size);
        let bf16: Vec<bf16> = f32.iter().map(|&x| bf16::from_f32(x)).collect();
        let f16: Vec<f16> = f32.iter().map(|&x| f16::from_f32(x)).collect();
        let int8: Vec<i8> = f32.iter().map(|&x| (x * 255.0) as i8).collect();
        let int4: Vec<u8> = int8[..size / 2].iter().map(|&x| x as u8).collect();
        let scales = numbers(size / 64);
        for (name, weight, bytes) in [
            ("f32 ", Weight::F32(&f32), size * 4),
            ("bf16", Weight::Bf16(&bf16), size * 2),
            ("f16 ", Weight::F16(&f16), size * 2),
            ("int8", Weight::Int8 { values: &int8, scales: &scales, block: 64 }, size * 17 / 16),
            ("int4", Weight::Int4 { packed: &int4, scales: &scales, block: 64 }, size * 9 / 16),
        ] {
            let mut plain_sum = || {
                black_box(sum_of(&f32[..bytes / 4]));
            };
            let x = numbers(16 * d_in);
            let rows = [1, 4, 16];
            let mut products = rows.map(|n| {
                let x = &x;
                move || {
                    black_box(linear(&x[..n * d_in], weight, None, [n, d_in, d_out]));
                }
            });
            let mut functions: Vec<&mut dyn FnMut()> = vec![&mut plain_sum];
            functions.extend(products.iter_mut().map(|x| x as &mut dyn FnMut()));
            let seconds = medians(&mut functions);
            let gb = bytes as f64 / 1e9;
            print!("{d_out:5} x {d_in:4} {name} | sum {:5.1} GB/s", gb / seconds[0]);
            for (n, seconds) in rows.into_iter().zip(&seconds[1..]) {
                let flops = 2.0 * (n * size) as f64;
                print!(" | {n:2} rows {:5.1} GB/s {:5.1} GFLOP/s", gb / seconds, flops / seconds / 1e9);
            }
            println!();
        }
    }
}

/// A sum in the threads of rayon.
fn sum_of(x: &[f32]) -> f32 {
    struct Sum<'a>(&'a [f32]);
    impl WithSimd for Sum<'_> {
        type Output = f32;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            sum(simd, self.0)
        }
    }
    x.par_chunks(1 << 16).map(|x| dispatch(Sum(x))).sum()
}

/// GFLOP/s of products with many rows.
pub fn many_rows() {
    for (d_out, d_in) in SHAPES {
        let size = d_in * d_out;
        let f32 = numbers(size);
        let bf16: Vec<bf16> = f32.iter().map(|&x| bf16::from_f32(x)).collect();
        let int8: Vec<i8> = f32.iter().map(|&x| (x * 255.0) as i8).collect();
        let scales = numbers(size / 64);
        let forms = [
            Weight::F32(&f32),
            Weight::Bf16(&bf16),
            Weight::Int8 { values: &int8, scales: &scales, block: 64 },
        ];
        for n in [64, 1024] {
            let (x, grad) = (numbers(n * d_in), numbers(n * d_out));
            let sizes = [n, d_in, d_out];
            let mut forward = forms.map(|weight| {
                let x = &x;
                move || {
                    black_box(linear(x, weight, None, sizes));
                }
            });
            let mut backward = forms.map(|weight| {
                let grad = &grad;
                move || {
                    black_box(linear_backward(grad, weight, sizes));
                }
            });
            let mut functions: Vec<&mut dyn FnMut()> = Vec::new();
            functions.extend(forward.iter_mut().map(|x| x as &mut dyn FnMut()));
            functions.extend(backward.iter_mut().map(|x| x as &mut dyn FnMut()));
            let rate = |seconds: f64| 2.0 * (n * size) as f64 / seconds / 1e9;
            let rates: Vec<f64> = medians(&mut functions).into_iter().map(rate).collect();
            println!(
                "{n:4} rows {d_out:5} x {d_in:4} | y f32 {:5.0} bf16 {:5.0} int8 {:5.0} \
                 | dx f32 {:5.0} bf16 {:5.0} int8 {:5.0} GFLOP/s",
                rates[0], rates[1], rates[2], rates[3], rates[4], rates[5]
            );
        }
    }
}
