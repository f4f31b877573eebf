//! The PTX of `kernels/ptx`, as `build.rs` embeds it.

// `MODULES`: name and text of each.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Name and PTX of every module, in the order of their names.
pub fn modules() -> &'static [(&'static str, &'static str)] {
    MODULES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_is_ptx_that_a_driver_of_cuda_12_takes() {
        assert!(modules().len() >= 10, "{} modules", modules().len());
        assert!(modules().is_sorted_by_key(|(name, _)| name));
        for (name, text) in modules() {
            assert!(text.contains(".version 8.0\n"), "{name}: another ISA");
            assert!(text.contains(".visible .entry "), "{name}: no kernel");
        }
    }
}
