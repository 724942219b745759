//! The operations of every backend, beside the same ones composed of Burn's plain operations.

#![allow(clippy::single_range_in_vec_init)]

mod operations;

use burn::tensor::backend::BackendTypes;
use burn_autodiff::Autodiff;

/// The backend of the plain operations.
type Plain = Autodiff<burn_ndarray::NdArray>;

macro_rules! on_backend {
    ($name:ident, $backend:ty: $($operation:ident)*) => {
        mod $name {
            use super::*;

            fn run(operation: fn(&<$backend as BackendTypes>::Device)) {
                operation(&Default::default());
            }

            $(
                #[test]
                fn $operation() {
                    run(operations::$operation::<Autodiff<$backend>>);
                }
            )*

            /// As the self-test of the devices has it.
            #[test]
            fn the_kernels_are_near_to_the_default_bodies() {
                let mut found = reft_kernels::deviations::<$backend>(&Default::default());
                found.retain(|(_, deviation)| *deviation > 1e-5);
                assert!(found.is_empty(), "{found:?}");
            }

            #[test]
            fn every_operation_is_tested() {
                let tested = [$(stringify!($operation)),*];
                let all = operations::all::<Autodiff<$backend>>();
                assert_eq!(tested.to_vec(), all.into_iter().map(|(name, _)| name).collect::<Vec<_>>());
            }
        }
    };
    ($name:ident, $backend:ty) => {
        on_backend!(
            $name, $backend:
            rms_norm layer_norm swiglu gelu rotary
            attention_in_a_grid attention_of_packed_texts attention_with_constant_keys dropout
            linear linear_with_half_weights linear_with_quantized_weights
            nll write_rows
        );
    };
}

#[cfg(feature = "flex")]
on_backend!(flex, burn_flex::Flex);
#[cfg(feature = "ndarray")]
on_backend!(ndarray, burn_ndarray::NdArray);

/// The numbers of a training step do not depend on the number of threads.
#[cfg(feature = "flex")]
mod threads {
    use super::*;
    use burn::tensor::{Distribution, Tensor};
    use burn_flex::Flex;
    use reft_kernels::{
        AttentionInputs, AttentionSettings, Dropout, Heads, Kernels, Mask, RotaryTable, Segment, Spans,
    };

    type Tracked = Autodiff<Flex>;

    fn segment(queries: std::ops::Range<usize>, before: &[std::ops::Range<usize>]) -> Segment {
        let keys: Vec<_> = before.iter().cloned().chain([queries.clone()]).collect();
        Segment { offset: before.iter().map(ExactSizeIterator::len).sum(), queries, keys }
    }

    /// A block of a transformer and its loss: the loss of each token, and the gradient of its inputs.
    fn block(inputs: &[Tensor<Flex, 2>; 4]) -> [Vec<f32>; 2] {
        let [x, square, wide, vocab] = inputs.clone().map(Tensor::<Tracked, 2>::from_inner);
        let x = x.require_grad();
        let g = square.clone().narrow(0, 0, 1).reshape([192]);
        let states = Kernels::rms_norm(x.clone(), g.clone(), 1e-5);
        let states = Kernels::linear(states, square.clone(), None);
        let angles = x.clone().inner().narrow(0, 0, 450).narrow(1, 0, 16);
        let table = RotaryTable { cos: angles.clone().cos(), sin: angles.sin() };
        let table = RotaryTable { cos: Tensor::from_inner(table.cos), sin: Tensor::from_inner(table.sin) };
        let queries = Kernels::rotary(states.clone(), &table, false);
        let heads = Heads { queries: 6, keys: 6, dim: 32 };
        let segments = vec![
            segment(0..200, &[]),
            segment(200..300, &[0..200]),
            segment(300..700, &[0..200, 200..300]),
            segment(700..900, &[]),
        ];
        let spans = Spans::packed(segments, 900, Mask::CAUSAL);
        let inputs = AttentionInputs { queries: queries.clone(), keys: queries, values: states, past: None };
        let dropout = Some(Dropout { rate: 0.1, seed: 3 });
        let states = Kernels::attention(inputs, &AttentionSettings { heads, spans, dropout });
        let states = Kernels::layer_norm(states, g.clone(), g, 1e-5);
        let up = Kernels::linear(states, wide, None);
        let states = Kernels::gelu(Kernels::swiglu(up.clone(), up)).narrow(1, 0, 192);
        let labels: Vec<u32> = (0..900).map(|idx| idx % 700).collect();
        let (values, gradient) = Kernels::nll(states.clone(), vocab, &labels, true);
        let grads = (states * gradient.expect("requested")).sum().backward();
        let gradient = x.grad(&grads).expect("tracked");
        [values.into_data().to_vec().expect("in f32"), gradient.into_data().to_vec().expect("in f32")]
    }

    #[test]
    fn the_same_bits() {
        let device = Default::default();
        let inputs = [[900, 192], [192, 192], [512, 192], [700, 192]]
            .map(|shape| Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &device));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("a pool of threads").install(|| block(&inputs))
        };
        let one = run(1);
        assert!(one.iter().flatten().all(|x| x.is_finite()));
        assert!(run(2) == one && run(3) == one);
    }
}
