//! The control block: the few values that change from step to step.
//!
//! A recorded node holds a slot, never the value: learning rate, decay, random counter and batch
//! offset are written here between replays and read while a replay runs.

use std::fmt;

/// Slot of an f32 that changes between replays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct F32Slot(usize);

/// Slot of a u64 that changes between replays: counters and offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct U64Slot(usize);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    F32,
    U64,
}

/// Values that recorded nodes read at replay, by slot.
#[derive(Clone, Default)]
pub struct Control {
    values: Vec<u64>,
    /// Name and kind: slots of different kinds may have the same name.
    names: Vec<(String, Kind)>,
    /// Values of slots in replays that are to have no effect.
    halted: Vec<(usize, u64)>,
}

#[cfg(feature = "cuda")]
impl F32Slot {
    /// Its place in the block, in words of 64 bits.
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

#[cfg(feature = "cuda")]
impl U64Slot {
    /// Its place in the block, in words of 64 bits.
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

impl Control {
    /// An empty control block.
    pub fn new() -> Self {
        Control::default()
    }

    fn slot(&mut self, name: &str, kind: Kind, value: u64) -> usize {
        match self.names.iter().position(|known| known.0 == name && known.1 == kind) {
            Some(slot) => slot,
            None => {
                self.names.push((name.to_owned(), kind));
                self.values.push(value);
                self.values.len() - 1
            }
        }
    }

    /// All values in the order of their slots, an f32 in the lower half of its word.
    #[cfg(feature = "cuda")]
    pub(crate) fn values(&self) -> &[u64] {
        &self.values
    }

    /// The values of a replay that is to have no effect.
    #[cfg(feature = "cuda")]
    pub(crate) fn halted_values(&self) -> Vec<u64> {
        let mut values = self.values.clone();
        for &(slot, value) in &self.halted {
            values[slot] = value;
        }
        values
    }

    /// Name of the slot with that number.
    #[cfg(feature = "cuda")]
    pub(crate) fn name(&self, slot: usize) -> &str {
        &self.names[slot].0
    }

    /// The f32 slot of that name; made with `initial` if it is new.
    pub fn f32_slot(&mut self, name: &str, initial: f32) -> F32Slot {
        F32Slot(self.slot(name, Kind::F32, u64::from(initial.to_bits())))
    }

    /// The u64 slot of that name; made with `initial` if it is new.
    pub fn u64_slot(&mut self, name: &str, initial: u64) -> U64Slot {
        U64Slot(self.slot(name, Kind::U64, initial))
    }

    /// Value of an f32 slot.
    #[inline]
    pub fn f32(&self, slot: F32Slot) -> f32 {
        f32::from_bits(self.values[slot.0] as u32)
    }

    /// Value of a u64 slot.
    #[inline]
    pub fn u64(&self, slot: U64Slot) -> u64 {
        self.values[slot.0]
    }

    /// Sets an f32 slot for the replays to come.
    pub fn set_f32(&mut self, slot: F32Slot, value: f32) {
        self.values[slot.0] = u64::from(value.to_bits());
    }

    /// States the value that a slot takes, on a device that is given several replays at once, in those
    /// that follow one whose result is not finite ([`crate::Tape::stop_on`]): one with which they change
    /// nothing that outlives them. A processor does not run them.
    pub fn set_u64_halted(&mut self, slot: U64Slot, value: u64) {
        self.halted.retain(|&(other, _)| other != slot.0);
        self.halted.push((slot.0, value));
    }

    /// As [`Control::set_u64_halted`].
    pub fn set_f32_halted(&mut self, slot: F32Slot, value: f32) {
        self.halted.retain(|&(other, _)| other != slot.0);
        self.halted.push((slot.0, u64::from(value.to_bits())));
    }

    /// Sets a u64 slot for the replays to come.
    pub fn set_u64(&mut self, slot: U64Slot, value: u64) {
        self.values[slot.0] = value;
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.names.iter().map(|(name, _)| name).zip(&self.values)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_two_kinds_do_not_share_a_value() {
        let mut control = Control::new();
        let rate = control.f32_slot("x", 1.5);
        let count = control.u64_slot("x", 7);
        control.set_u64(count, 8);
        assert_eq!((control.f32(rate), control.u64(count)), (1.5, 8));
        assert_eq!(control.f32_slot("x", 2.0), rate);
    }
}
