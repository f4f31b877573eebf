//! The CPU: its instruction set, its threads, its memory, and programs that run on it.

#![allow(unsafe_code)]

pub mod cache;
mod help;
pub mod isa;
pub mod launch;
pub mod memory;
mod peak;
mod processor;
pub mod program;
pub mod simd;
pub mod team;
pub(crate) mod tiles;
pub mod trace;

pub use cache::Caches;
pub use help::Trial;
pub use isa::Isa;
pub use launch::{Chunk, Launch, rows_per_chunk};
pub use memory::{Memory, touch};
pub use peak::Peak;
pub use program::Program;
pub use team::Team;

use crate::error::{Error, Result};

/// More threads than any machine runs at once. Far beyond it, a system ends the program for lack of
/// memory maps rather than refuse a thread.
const MOST_THREADS: usize = 4096;

/// A CPU as a device: an instruction set and a team of threads.
pub struct Cpu {
    isa: Isa,
    team: Team,
}

impl Cpu {
    /// The CPU with that many threads (0: as many as there are processors) and the instruction set
    /// that [`Isa::detect`] finds.
    ///
    /// # Errors
    /// The forced instruction set is not there, there are more than 4096 threads, or the system
    /// refuses to start them.
    pub fn new(threads: usize) -> Result<Cpu> {
        Cpu::with_isa(threads, Isa::detect()?)
    }

    /// The CPU with that many threads (0: as many as there are processors) and that instruction set.
    ///
    /// # Errors
    /// The instruction set is not there, or the system refuses to start the threads.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Cpu> {
        if !isa.is_available() {
            return Err(Error::device(isa.name(), "this machine does not have it"));
        }
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST_THREADS)),
            n => n,
        };
        if threads > MOST_THREADS {
            let problem = format!("{threads} threads; at most {MOST_THREADS} can be used");
            return Err(Error::device("cpu", problem));
        }
        let team = Team::new(threads)
            .map_err(|e| Error::device("cpu", format!("cannot start {threads} threads: {e}")))?;
        // What a thread allocates when it starts is then not allocated during a replay.
        team.run(&|_| {});
        Ok(Cpu { isa, team })
    }

    /// The instruction set of its kernels.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }

    /// The threads.
    pub fn team(&self) -> &Team {
        &self.team
    }
}
