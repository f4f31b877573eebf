//! Which processor a thread runs on, and how it leaves one that another thread of its team needs.
//!
//! Two threads of a team on one processor are worse than one thread: whoever waits by spinning
//! keeps the other one from running. Linux leaves them there for as long as the process lives: a
//! thread that is woken goes where it last ran, and one that spins looks as busy as any other.

/// No processor: not known, or the thread is not running.
pub const NOWHERE: u32 = u32::MAX;

#[cfg(target_os = "linux")]
mod system {
    use std::ffi::{c_int, c_ulong};

    /// Processors that a set has room for, as in the C library's `cpu_set_t`.
    const MOST: usize = 1024;
    const BITS: usize = c_ulong::BITS as usize;

    #[repr(C)]
    #[derive(Clone, Copy, PartialEq)]
    struct Set([c_ulong; MOST / BITS]);

    // The C library is linked by `std`; all three have been in it for longer than Rust exists.
    unsafe extern "C" {
        fn sched_getcpu() -> c_int;
        fn sched_getaffinity(thread: c_int, bytes: usize, set: *mut Set) -> c_int;
        fn sched_setaffinity(thread: c_int, bytes: usize, set: *const Set) -> c_int;
    }

    pub fn current() -> u32 {
        // SAFETY: takes nothing, and gives a number or -1, which is `NOWHERE`.
        unsafe { sched_getcpu() as u32 }
    }

    pub fn leave(taken: impl Iterator<Item = u32>) -> bool {
        let mut allowed = Set([0; MOST / BITS]);
        // SAFETY: the set has the size that is given, and thread 0 is the calling one.
        if unsafe { sched_getaffinity(0, size_of::<Set>(), &raw mut allowed) } < 0 {
            return false;
        }
        let mut others = allowed;
        for processor in taken {
            if let Some(word) = others.0.get_mut(processor as usize / BITS) {
                *word &= !(1 << (processor as usize % BITS));
            }
        }
        if others.0.iter().all(|&word| word == 0) {
            return false;
        }
        // Narrowing the set moves the thread; afterwards it may run wherever it could before.
        // SAFETY: as above; both sets are only read.
        unsafe {
            let moved = sched_setaffinity(0, size_of::<Set>(), &raw const others) == 0;
            moved && sched_setaffinity(0, size_of::<Set>(), &raw const allowed) == 0
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub fn current() -> u32 {
        super::NOWHERE
    }

    pub fn leave(_taken: impl Iterator<Item = u32>) -> bool {
        false
    }
}

/// The processor that this thread runs on just now; [`NOWHERE`] where the system does not say.
pub fn current() -> u32 {
    system::current()
}

/// Moves this thread to a processor that is not in `taken`, once: the system may move it again.
/// Gives false, and does nothing, where it may not run on any other.
pub fn leave(taken: impl Iterator<Item = u32>) -> bool {
    system::leave(taken)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_leaves_a_processor_if_there_is_another() {
        // A quota would make `available_parallelism` smaller than the set: a thread may leave where
        // the set without its processor is not empty.
        let here = current();
        let elsewhere = leave([here].into_iter());
        // The system may move the thread between two lines; so more often than not.
        let left = (0..50)
            .filter(|_| {
                let here = current();
                leave([here].into_iter()) && current() != here
            })
            .count();
        assert_eq!(left > 25, elsewhere, "{left} of 50");
        let alone = std::thread::available_parallelism().map_or(1, |n| n.get()) == 1;
        assert!(elsewhere || alone, "there are other processors, and the thread stayed");
        assert!(!leave(0..1024));
    }
}
