//! Clusters on the stand-in, as GPUs have them from compute capability 9.0 on.

use crate::build::{HOPPER, ORDERS};
use crate::gpu::{Gpu, at, digest, launch_clusters};
use crate::tool::{ILLEGAL_ADDRESS, LAUNCH_FAILED, caught_with, manifest};
use crate::{on_hopper, on_stand_in};
use cudarc::driver::CudaSlice;
use cudarc::driver::sys::{CUfunction_attribute_enum, CUresult};

type Extents = (u32, u32, u32);

/// Launches a kernel of `planted.cu` that takes `y` alone, with 64 threads to a block.
fn run(gpu: &Gpu, name: &str, grid: Extents, cluster: Extents, y: &CudaSlice<u32>) -> CUresult {
    let kernel = gpu.planted(name, 64, &[".u64"]);
    let address = at(y);
    let argument = std::ptr::from_ref(&address).cast();
    launch_clusters(gpu, &kernel, [grid, cluster, (64, 1, 1)], 256, &[argument])
}

on_hopper! {
    fn blocks_of_a_cluster_reach_each_other() {
        let gpu = Gpu::new();
        for (grid, cluster) in [((4, 1, 1), (2, 1, 1)), ((8, 2, 1), (4, 2, 1)), ((3, 4, 1), (1, 4, 1)), ((3, 1, 1), (1, 1, 1))] {
            let blocks = grid.0 * grid.1;
            let y = gpu.unset::<u32>(blocks as usize * 64);
            assert_eq!(run(&gpu, "tool_cluster", grid, cluster, &y), CUresult::CUDA_SUCCESS);
            let got = gpu.download(&y);
            digest(&format!("{grid:?} {cluster:?}"), &got);
            for block in 0..blocks {
                // Ranks count along x first.
                let (x, y) = (block % grid.0, block / grid.0);
                let rank = x % cluster.0 + y % cluster.1 * cluster.0;
                let next = (rank + 1) % (cluster.0 * cluster.1);
                let next_x = x / cluster.0 * cluster.0 + next % cluster.0;
                let next_y = y / cluster.1 * cluster.1 + next / cluster.0;
                let other = next_y * grid.0 + next_x;
                for i in 0..64 {
                    let want = 1000 * other + (63 - i) + 7 * other + (63 - i);
                    assert_eq!(got[(block * 64 + i) as usize], want, "block {block}, thread {i}");
                }
            }
        }
    }
}

on_hopper! {
    fn clusters_that_a_driver_refuses() {
        let gpu = Gpu::new();
        let y = gpu.unset::<u32>(64 * 64);
        let refused = CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE;
        for (grid, cluster) in [((3, 1, 1), (2, 1, 1)), ((16, 1, 1), (16, 1, 1)), ((4, 1, 1), (0, 1, 1))] {
            assert_eq!(run(&gpu, "tool_cluster", grid, cluster, &y), refused, "{grid:?} {cluster:?}");
        }
    }
}

on_stand_in! {
    fn clusters_need_a_later_gpu() {
        let gpu = Gpu::new();
        let y = gpu.unset::<u32>(256);
        let refused = CUresult::CUDA_ERROR_NOT_SUPPORTED;
        assert_eq!(run(&gpu, "tool_cluster", (4, 1, 1), (2, 1, 1), &y), refused);
    }
}

on_hopper! {
    fn every_kernel_loads_on_hopper() {
        let gpu = Gpu::new();
        for (file, noted) in manifest()["kernels"].as_object().expect("an object") {
            for name in noted["entries"].as_array().expect("an array") {
                let kernel = gpu.kernel(file, name.as_str().expect("a name"));
                let which = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
                let most = kernel.get_attribute(which).expect("it says");
                assert!(most >= 128 && most % 32 == 0, "{name}: {most} threads");
            }
        }
    }
}

/// A fault of one of the clusters, in these orders of threads.
fn faulty(name: &str, kernel: &str, orders: &[&str], words: &[&str], result: CUresult) {
    let name = format!("cluster::{name}");
    caught_with(&name, orders, &HOPPER, &[&[kernel], words].concat(), || {
        let gpu = Gpu::new();
        let y = gpu.unset::<u32>(4 * 64);
        assert_eq!(run(&gpu, kernel, (4, 1, 1), (2, 1, 1), &y), CUresult::CUDA_SUCCESS);
        assert_eq!(gpu.stream.synchronize().expect_err("it is caught").0, result);
        std::mem::forget(y);
    });
}

#[test]
fn memory_of_a_block_that_has_not_begun_is_not_touched() {
    faulty(
        "memory_of_a_block_that_has_not_begun_is_not_touched",
        "planted_cluster_begins",
        &["forward", "reverse"],
        &["a read of shared memory of block", "of the cluster, which has not begun"],
        ILLEGAL_ADDRESS,
    );
}

#[test]
fn memory_of_a_block_that_has_returned_is_not_touched() {
    faulty(
        "memory_of_a_block_that_has_returned_is_not_touched",
        "planted_cluster_returns",
        &["forward", "reverse"],
        &["a read of shared memory of block", "of the cluster, which has returned"],
        ILLEGAL_ADDRESS,
    );
}

#[test]
fn a_thread_that_misses_the_barrier_of_a_cluster_is_named() {
    faulty(
        "a_thread_that_misses_the_barrier_of_a_cluster_is_named",
        "planted_cluster_absent",
        &ORDERS,
        &[
            "divergence",
            "waits for the cluster's barrier",
            "thread (9, 0, 0) of block",
            "has returned",
        ],
        LAUNCH_FAILED,
    );
}

#[test]
fn a_rank_outside_of_the_cluster_is_caught() {
    faulty(
        "a_rank_outside_of_the_cluster_is_caught",
        "planted_cluster_rank",
        &ORDERS,
        &["a rank that the cluster does not have"],
        LAUNCH_FAILED,
    );
}
