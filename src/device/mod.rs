//! Where tensors live and where kernels run.

pub mod cpu;
