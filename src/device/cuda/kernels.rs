//! The PTX and cubins of `kernels/ptx`, as `build.rs` embeds them.

// `MODULES`: name and text of each; `CUBINS`: module, architecture and image of each.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Name and PTX of every module, in the order of their names.
pub fn modules() -> &'static [(&'static str, &'static str)] {
    MODULES
}

/// What the compiler made of a module for one architecture (`sm_90a`), if it is carried beside the PTX.
pub(super) fn cubin(module: &str, architecture: &str) -> Option<&'static [u8]> {
    CUBINS.iter().find(|(name, of, _)| *name == module && *of == architecture).map(|cubin| cubin.2)
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

    #[test]
    fn cubins_are_of_modules() {
        for (name, architecture, image) in CUBINS {
            assert!(image.starts_with(b"\x7fELF"), "{name}");
            assert!(modules().iter().any(|(module, _)| module == name), "{name} has no PTX");
            assert_eq!(cubin(name, architecture), Some(*image));
        }
        assert_eq!(cubin("gemm_sm90", "sm_80"), None);
    }
}
