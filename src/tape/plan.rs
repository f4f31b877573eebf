//! Order and memory: which nodes run at the same time, and where every tensor lies.
//!
//! Each phase of a node goes into the earliest stage after everything that it depends on. Tensors
//! are then laid into one arena by their lifetimes in stages, so that tensors of one stage never
//! share memory.

use std::collections::HashMap;

/// Alignment of tensors in the arena, in bytes.
const ALIGNMENT: usize = 64;

/// Work below this is appended to the single-chunk work that it depends on: a barrier between the
/// two would cost as much as running both on two threads could save.
const SEQUENCE_NANOSECONDS: f64 = 1500.0;

/// Where something lies, as far as dependencies are concerned: a tensor of the arena by number, or
/// a part of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Arena(u32),
    Region(usize),
}

/// A range of bytes that a node reads or writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub place: Place,
    pub start: usize,
    pub end: usize,
    pub write: bool,
}

/// What the planner knows of a node.
pub(super) struct Work {
    pub accesses: Vec<Access>,
    /// Chunks of each phase.
    pub chunks: Vec<usize>,
    /// Rough time of the whole node on one thread.
    pub nanoseconds: f64,
}

/// A phase of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub node: usize,
    pub phase: usize,
}

pub(super) struct Schedule {
    /// Stages of items of steps; an item of several steps is run in sequence by one thread.
    pub stages: Vec<Vec<Vec<Step>>>,
    /// First and last stage of each node.
    pub spans: Vec<(usize, usize)>,
    /// Item, within its stage, of the first and the last phase of each node.
    items: Vec<(usize, usize)>,
}

impl Schedule {
    /// Whether node `a` is over before node `b` begins, in a replay and in recorded order.
    pub(super) fn precedes(&self, a: usize, b: usize) -> bool {
        let (end, start) = (self.spans[a].1, self.spans[b].0);
        a < b && (end < start || (end == start && self.items[a].1 == self.items[b].0))
    }
}

/// That an output may take an input's memory: tensors of the arena, of as many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reuse {
    pub node: usize,
    pub output: u32,
    pub input: u32,
}

/// Those of the candidates that lose nothing: all others who touch the input's memory are over when
/// the node begins, as `precedes(other, node)` has it. The order of the nodes stays as it is.
pub(super) fn reuse(
    work: &[Work],
    precedes: impl Fn(usize, usize) -> bool,
    candidates: &[Reuse],
) -> Vec<Reuse> {
    let mut users: HashMap<u32, Vec<usize>> = HashMap::new();
    for (node, this) in work.iter().enumerate() {
        for access in &this.accesses {
            if let Place::Arena(root) = access.place {
                users.entry(root).or_default().push(node);
            }
        }
    }
    let mut taken: Vec<Reuse> = Vec::new();
    for &candidate in candidates {
        let Reuse { node, output, input } = candidate;
        let once = |r: &Reuse| r.node != node || (r.output != output && r.input != input);
        // Once by the node itself: another input there may be the same memory.
        let users = users.get(&input).map_or(&[][..], |users| users);
        let own = users.iter().filter(|&&user| user == node).count() == 1;
        let runs = |node: usize| !work[node].chunks.is_empty();
        let over = |&user: &usize| user == node || !runs(user) || precedes(user, node);
        if runs(node) && own && users.iter().all(over) && taken.iter().all(once) {
            taken.push(candidate);
        }
    }
    taken
}

/// For each node the earlier ones that it must wait for: those that wrote what it touches, or touched
/// what it writes. Not those whose bytes another one has written over since, which that one waits for.
fn dependencies(work: &[Work]) -> Vec<Vec<usize>> {
    let mut all = Vec::with_capacity(work.len());
    let mut history: HashMap<Place, Vec<(usize, Access)>> = HashMap::new();
    for (node, this) in work.iter().enumerate() {
        let mut predecessors: Vec<usize> = Vec::new();
        if this.chunks.is_empty() {
            // It touches nothing: it must not stand in for those that touched the bytes before.
            all.push(predecessors);
            continue;
        }
        for access in &this.accesses {
            for (earlier, other) in history.get(&access.place).into_iter().flatten() {
                let overlap = access.start < other.end && other.start < access.end;
                if overlap && (access.write || other.write) {
                    predecessors.push(*earlier);
                }
            }
        }
        for access in &this.accesses {
            let list = history.entry(access.place).or_default();
            if access.write {
                // Whoever touches these bytes later depends on this node, which depends on them.
                list.retain(|(_, other)| other.start < access.start || other.end > access.end);
            }
            list.push((node, *access));
        }
        all.push(predecessors);
    }
    all
}

/// Which node comes before which, where nodes wait for what they need and for nothing else.
pub(super) struct Order {
    /// For each node those that it waits for, without those that these wait for themselves.
    pub after: Vec<Vec<usize>>,
    /// For each node a bit for each of those that are over when it begins.
    before: Vec<Vec<u64>>,
}

impl Order {
    pub(super) fn new(work: &[Work]) -> Order {
        let words = work.len().div_ceil(64);
        let (mut after, mut before) = (Vec::new(), Vec::<Vec<u64>>::new());
        for mut predecessors in dependencies(work) {
            // The latest first: what it waits for need not be waited for twice.
            predecessors.sort_unstable_by(|a, b| b.cmp(a));
            predecessors.dedup();
            let (mut needed, mut over) = (Vec::new(), vec![0u64; words]);
            for node in predecessors {
                if over[node / 64] >> (node % 64) & 1 == 0 {
                    needed.push(node);
                    over.iter_mut().zip(&before[node]).for_each(|(over, before)| *over |= before);
                    over[node / 64] |= 1 << (node % 64);
                }
            }
            after.push(needed);
            before.push(over);
        }
        Order { after, before }
    }

    /// Whether node `a` is over when node `b` begins.
    pub(super) fn precedes(&self, a: usize, b: usize) -> bool {
        self.before[b][a / 64] >> (a % 64) & 1 == 1
    }

    /// Nodes of the longest chain of those that wait for each other.
    pub(super) fn longest(&self) -> usize {
        let mut lengths: Vec<usize> = Vec::new();
        for after in &self.after {
            lengths.push(1 + after.iter().map(|&node| lengths[node]).max().unwrap_or(0));
        }
        lengths.into_iter().max().unwrap_or(0)
    }
}

/// Who touches a block of the arena, for an order that is not one of stages.
#[derive(Clone, Debug, Default)]
pub(super) struct Life {
    /// Nodes that touch it.
    pub users: Vec<usize>,
    /// Whether it is written before the first node begins, or read after the last one is over.
    pub beyond: bool,
}

impl Life {
    /// Whether nobody touches the one before all who touch the other are done.
    pub(super) fn apart(&self, other: &Life, order: &Order) -> bool {
        let before = |a: &Life, b: &Life| {
            a.users.iter().all(|&user| b.users.iter().all(|&next| order.precedes(user, next)))
        };
        !self.beyond && !other.beyond && (before(self, other) || before(other, self))
    }
}

/// Orders nodes into stages.
pub(super) fn schedule(work: &[Work]) -> Schedule {
    let mut stages: Vec<Vec<Vec<Step>>> = Vec::new();
    let mut spans = vec![(0, 0); work.len()];
    let mut first_and_last = vec![(0, 0); work.len()];
    // Stage and item of the last phase of each node.
    let mut last: Vec<(usize, usize)> = vec![(0, 0); work.len()];
    for (node, (this, predecessors)) in work.iter().zip(dependencies(work)).enumerate() {
        let mut before: Option<usize> = None;
        let mut items: Vec<usize> = Vec::new();
        for &earlier in &predecessors {
            let (stage, item) = last[earlier];
            if before.is_none_or(|b| stage > b) {
                before = Some(stage);
                items.clear();
            }
            if before == Some(stage) && !items.contains(&item) {
                items.push(item);
            }
        }
        for (phase, &chunks) in this.chunks.iter().enumerate() {
            let step = Step { node, phase };
            let small =
                chunks <= 1 && this.nanoseconds / this.chunks.len() as f64 <= SEQUENCE_NANOSECONDS;
            let sequence = match (before, &items[..]) {
                (Some(stage), &[item]) if small => {
                    let only_single = stages[stage][item]
                        .iter()
                        .all(|step: &Step| work[step.node].chunks[step.phase] <= 1);
                    only_single.then_some((stage, item))
                }
                _ => None,
            };
            let (stage, item) = match sequence {
                Some((stage, item)) => {
                    stages[stage][item].push(step);
                    (stage, item)
                }
                None => {
                    let stage = before.map_or(0, |stage| stage + 1);
                    if stage == stages.len() {
                        stages.push(Vec::new());
                    }
                    stages[stage].push(vec![step]);
                    (stage, stages[stage].len() - 1)
                }
            };
            if phase == 0 {
                spans[node].0 = stage;
                first_and_last[node].0 = item;
            }
            spans[node].1 = stage;
            first_and_last[node].1 = item;
            last[node] = (stage, item);
            before = Some(stage);
            items = vec![item];
        }
    }
    Schedule { stages, spans, items: first_and_last }
}

/// A tensor (or scratch memory) to be laid into the arena.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub bytes: usize,
    /// First and last stage in which it is alive.
    pub alive: (usize, usize),
}

/// How much memory a recording takes, known before it first runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Bytes of the arena: all tensors and scratch memory of the recording.
    pub arena_bytes: usize,
    /// Bytes that are alive at the fullest moment: no plan can be smaller.
    pub live_bytes: usize,
    /// Bytes that the same tensors would take without sharing.
    pub unshared_bytes: usize,
    /// Bytes of baked-in constants.
    pub constant_bytes: usize,
}

/// Gives each block an offset such that blocks alive in one stage do not overlap.
pub(super) fn lay_out(blocks: &[Block]) -> (Vec<usize>, MemoryPlan) {
    let apart = |i: usize, j: usize| {
        let (a, b) = (blocks[i].alive, blocks[j].alive);
        b.0 > a.1 || a.0 > b.1
    };
    lay_out_apart(blocks, apart)
}

/// Gives each block an offset such that blocks overlap only where `apart` says that they may: largest
/// first, each at the lowest place that is free for its whole life.
pub(super) fn lay_out_apart(
    blocks: &[Block],
    apart: impl Fn(usize, usize) -> bool,
) -> (Vec<usize>, MemoryPlan) {
    let padded = |bytes: usize| bytes.next_multiple_of(ALIGNMENT);
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].bytes), blocks[i].alive.0, i));
    let mut offsets = vec![0; blocks.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut plan = MemoryPlan::default();
    for &i in &order {
        let block = blocks[i];
        if block.bytes == 0 {
            continue;
        }
        let mut neighbours: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&j| !apart(i, j))
            .map(|&j| (offsets[j], offsets[j] + padded(blocks[j].bytes)))
            .collect();
        neighbours.sort_unstable();
        let mut offset = 0;
        for (start, end) in neighbours {
            if offset + padded(block.bytes) <= start {
                break;
            }
            offset = offset.max(end);
        }
        offsets[i] = offset;
        placed.push(i);
        plan.arena_bytes = plan.arena_bytes.max(offset + padded(block.bytes));
        plan.unshared_bytes += padded(block.bytes);
    }
    let stages = blocks.iter().map(|block| block.alive.1 + 1).max().unwrap_or(0);
    for stage in 0..stages {
        let alive = |b: &&Block| b.alive.0 <= stage && stage <= b.alive.1;
        let live = blocks.iter().filter(alive).map(|block| padded(block.bytes)).sum();
        plan.live_bytes = plan.live_bytes.max(live);
    }
    (offsets, plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn access(place: u32, write: bool) -> Access {
        Access { place: Place::Arena(place), start: 0, end: 4, write }
    }

    fn work(chunks: &[usize], nanoseconds: f64, reads: &[u32], writes: &[u32]) -> Work {
        let accesses = reads
            .iter()
            .map(|&place| access(place, false))
            .chain(writes.iter().map(|&place| access(place, true)))
            .collect();
        Work { accesses, chunks: chunks.to_vec(), nanoseconds }
    }

    #[test]
    fn independent_nodes_share_a_stage_and_dependent_ones_do_not() {
        let nodes = [
            work(&[8], 1e5, &[], &[0]),
            work(&[8], 1e5, &[0], &[1]),
            work(&[8], 1e5, &[0], &[2]),
            work(&[8], 1e5, &[1, 2], &[3]),
        ];
        let schedule = schedule(&nodes);
        assert_eq!(schedule.spans, [(0, 0), (1, 1), (1, 1), (2, 2)]);
    }

    #[test]
    fn a_chain_of_small_nodes_is_one_sequence() {
        let nodes = [
            work(&[1], 100.0, &[], &[0]),
            work(&[1], 100.0, &[0], &[1]),
            work(&[1, 1], 100.0, &[1], &[2]),
        ];
        let schedule = schedule(&nodes);
        assert_eq!(schedule.stages.len(), 1);
        assert_eq!(schedule.stages[0].len(), 1);
        assert_eq!(schedule.stages[0][0].len(), 4);
    }

    #[test]
    fn a_write_waits_for_the_readers_of_the_old_value() {
        let nodes =
            [work(&[4], 1e5, &[], &[0]), work(&[4], 1e5, &[0], &[1]), work(&[4], 1e5, &[], &[0])];
        assert_eq!(schedule(&nodes).spans[2], (2, 2));
    }

    #[test]
    fn a_node_without_phases_hides_no_dependency() {
        let nodes =
            [work(&[4], 1e5, &[], &[0]), work(&[], 1e5, &[0], &[0]), work(&[4], 1e5, &[0], &[1])];
        assert_eq!(schedule(&nodes).spans[2], (1, 1));
    }

    #[test]
    fn an_order_says_what_must_be_waited_for_and_no_more() {
        // A chain 0, 1, 2 with a branch 3 off 0, and 4 that joins; 5 writes over what 0 wrote.
        let nodes = [
            work(&[1], 0.0, &[], &[0]),
            work(&[1], 0.0, &[0], &[1]),
            work(&[1], 0.0, &[0, 1], &[2]),
            work(&[1], 0.0, &[0], &[3]),
            work(&[1], 0.0, &[2, 3, 1], &[4]),
            work(&[1], 0.0, &[], &[0]),
        ];
        let order = Order::new(&nodes);
        let after: [&[usize]; 6] = [&[], &[0], &[1], &[0], &[3, 2], &[3, 2]];
        assert_eq!(order.after, after);
        assert!(order.precedes(0, 4) && order.precedes(1, 4) && !order.precedes(2, 3));
        assert!(!order.precedes(3, 2) && !order.precedes(4, 5) && !order.precedes(0, 0));
        assert_eq!(order.longest(), 4);
        let life = |users: &[usize]| Life { users: users.to_vec(), beyond: false };
        // On the branch and beside it; on the chain; read by the host.
        assert!(!life(&[2]).apart(&life(&[3]), &order));
        assert!(!life(&[0, 3]).apart(&life(&[2]), &order));
        assert!(life(&[0, 1]).apart(&life(&[2, 4]), &order));
        assert!(life(&[4]).apart(&life(&[1, 3]), &order));
        assert!(!life(&[0]).apart(&Life { users: vec![4], beyond: true }, &order));
    }

    /// Position of each phase: stage, item, place in the item.
    fn positions(schedule: &Schedule) -> HashMap<(usize, usize), (usize, usize, usize)> {
        let mut positions = HashMap::new();
        for (number, stage) in schedule.stages.iter().enumerate() {
            for (item, steps) in stage.iter().enumerate() {
                for (place, step) in steps.iter().enumerate() {
                    positions.insert((step.node, step.phase), (number, item, place));
                }
            }
        }
        positions
    }

    #[test]
    fn memory_is_reused_by_the_last_reader_only() {
        let candidates = [1, 2].map(|node| Reuse { node, output: node as u32, input: 0 });
        let chain = |second: &[u32], chunks: &[usize]| {
            let nodes = [
                work(chunks, 1e5, &[], &[0]),
                work(chunks, 1e5, &[0], &[1]),
                work(chunks, 1e5, second, &[2]),
            ];
            {
                let schedule = schedule(&nodes);
                reuse(&nodes, |a, b| schedule.precedes(a, b), &candidates)
            }
        };
        // Both read 0 in one stage; then the second one waits for the first; then it does not read it.
        assert_eq!(chain(&[0], &[8]), []);
        assert_eq!(chain(&[0, 1], &[8]), [candidates[1]]);
        assert_eq!(chain(&[1], &[8]), [candidates[0]]);
        // Twice read by one node.
        assert_eq!(chain(&[1, 0, 0], &[8]), []);
    }

    proptest! {
        #[test]
        fn reused_memory_is_read_by_nobody_else_afterwards(
            nodes in proptest::collection::vec(
                (proptest::collection::vec(0usize..30, 1..4), 1usize..4, 1usize..3, any::<bool>()),
                2..30,
            )
        ) {
            // Node n writes tensor n and reads earlier ones.
            let nodes: Vec<Work> = nodes
                .into_iter()
                .enumerate()
                .map(|(node, (reads, chunks, phases, small))| {
                    let mut reads: Vec<u32> = match node {
                        0 => Vec::new(),
                        _ => reads.into_iter().map(|read| (read % node) as u32).collect(),
                    };
                    reads.dedup();
                    let nanoseconds = if small { 100.0 } else { 1e5 };
                    work(&vec![chunks; phases], nanoseconds, &reads, &[node as u32])
                })
                .collect();
            let schedule = schedule(&nodes);
            let candidates: Vec<Reuse> = nodes
                .iter()
                .enumerate()
                .flat_map(|(node, work)| {
                    let reads = work.accesses.iter().filter(|access| !access.write);
                    reads.map(move |access| match access.place {
                        Place::Arena(input) => Reuse { node, output: node as u32, input },
                        Place::Region(_) => unreachable!("tensors of the arena"),
                    })
                })
                .collect();
            let taken = reuse(&nodes, |a, b| schedule.precedes(a, b), &candidates);
            let at = positions(&schedule);
            let mut outputs = Vec::new();
            for Reuse { node, output, input } in taken {
                prop_assert!(!outputs.contains(&output), "one output over two inputs");
                outputs.push(output);
                let begins = at[&(node, 0)];
                for (other, work) in nodes.iter().enumerate().filter(|&(other, _)| other != node) {
                    let touches =
                        |access: &Access| access.place == Place::Arena(input);
                    if !work.accesses.iter().any(touches) {
                        continue;
                    }
                    prop_assert!(other < node);
                    for phase in 0..work.chunks.len() {
                        let (stage, item, place) = at[&(other, phase)];
                        let in_sequence =
                            (stage, item) == (begins.0, begins.1) && place < begins.2;
                        prop_assert!(stage < begins.0 || in_sequence);
                    }
                }
            }
        }

        #[test]
        fn blocks_that_live_together_do_not_overlap(
            blocks in proptest::collection::vec((0usize..5000, 0usize..12, 0usize..6), 0..60)
        ) {
            let blocks: Vec<Block> = blocks
                .into_iter()
                .map(|(bytes, from, length)| Block { bytes, alive: (from, from + length) })
                .collect();
            let (offsets, plan) = lay_out(&blocks);
            for (i, a) in blocks.iter().enumerate() {
                prop_assert_eq!(offsets[i] % ALIGNMENT, 0);
                prop_assert!(offsets[i] + a.bytes <= plan.arena_bytes);
                for (j, b) in blocks.iter().enumerate().take(i) {
                    let together = a.alive.0 <= b.alive.1 && b.alive.0 <= a.alive.1;
                    let apart = offsets[i] + a.bytes <= offsets[j]
                        || offsets[j] + b.bytes <= offsets[i];
                    prop_assert!(!together || apart || a.bytes == 0 || b.bytes == 0);
                }
            }
            prop_assert!(plan.live_bytes <= plan.arena_bytes);
            prop_assert!(plan.arena_bytes <= plan.unshared_bytes);
        }
    }
}
