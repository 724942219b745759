use super::{medians, numbers};
use reft_kernels::{
    Heads, Mask, Segment,
    cpu::attention::{Inputs, attention as forward, attention_backward as backward},
};
use std::hint::black_box;

struct Shape {
    name: &'static str,
    heads: Heads,
    rows: usize,
    queries: usize,
    past: usize,
    mask: Mask,
}

/// Milliseconds and GFLOP/s of both directions.
pub fn attention() {
    let shape = |name, [queries, keys, dim]: [usize; 3], [rows, n_queries, past]: [usize; 3]| {
        let heads = Heads { queries, keys, dim };
        Shape { name, heads, rows, queries: n_queries, past, mask: Mask::CAUSAL }
    };
    let bidirectional = shape("32 x 64, 12 heads of 32, bidirectional", [12, 12, 32], [32, 64, 0]);
    for shape in [
        shape("16 x 256, 6/2 heads of 32", [6, 2, 32], [16, 256, 0]),
        shape("8 x 256, 9/3 heads of 64", [9, 3, 64], [8, 256, 0]),
        shape("1 x 2048, 9/3 heads of 64", [9, 3, 64], [1, 2048, 0]),
        Shape { mask: Mask::NONE, ..bidirectional },
        shape("1 x 1 after 512, 9/3 heads of 64", [9, 3, 64], [1, 1, 512]),
        shape("1 x 1 after 2048, 9/3 heads of 64", [9, 3, 64], [1, 1, 2048]),
        shape("8 x 1 after 2048, 9/3 heads of 64", [9, 3, 64], [8, 1, 2048]),
    ] {
        time(&shape);
    }
}

fn time(shape: &Shape) {
    let Heads { queries: n_heads, keys: n_key_heads, dim } = shape.heads;
    let (n, n_past) = (shape.rows * shape.queries, shape.rows * shape.past);
    let (queries, grad) = (numbers(n * n_heads * dim), numbers(n * n_heads * dim));
    let [keys, values] = [(); 2].map(|()| numbers(n * n_key_heads * dim));
    let [past_keys, past_values] = [(); 2].map(|()| numbers(n_past * n_key_heads * dim));
    let segment = |row: usize| {
        let new = row * shape.queries..(row + 1) * shape.queries;
        let keys = vec![row * shape.past..(row + 1) * shape.past, n_past + new.start..n_past + new.end];
        Segment { queries: new, keys, offset: shape.past }
    };
    let segments: Vec<Segment> = (0..shape.rows).map(segment).collect();
    let inputs = Inputs {
        queries: &queries,
        keys: &keys,
        values: &values,
        past: Some((&past_keys, &past_values)),
        heads: shape.heads,
        scale: shape.heads.scale() as f32,
    };
    let mut lse = vec![0.0; n * n_heads];
    let output = forward(inputs, &segments, shape.mask, None, Some(&mut lse));
    let seconds = medians(&mut [
        &mut || {
            black_box(forward(inputs, &segments, shape.mask, None, None));
        },
        &mut || {
            black_box(backward(inputs, &segments, shape.mask, None, &output, &lse, &grad));
        },
    ]);
    let seen = match shape.mask.causal {
        true => shape.queries * shape.past + shape.queries * (shape.queries + 1) / 2,
        false => shape.queries * shape.queries,
    };
    let products = (shape.rows * seen * n_heads * dim) as f64;
    let report =
        |seconds: f64, flops: f64| format!("{:8.3} ms {:6.1} GFLOP/s", seconds * 1e3, flops / seconds / 1e9);
    println!(
        "{:40} forward {}, backward {}",
        shape.name,
        report(seconds[0], 4.0 * products),
        report(seconds[1], 10.0 * products)
    );
}
