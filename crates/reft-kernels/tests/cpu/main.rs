//! The kernels for the CPU on slices, against plain computations in f64.

mod attention;
mod elementwise;
mod linear;
mod loss;
