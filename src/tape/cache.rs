//! Recordings by shape.

use super::Recording;
use crate::error::Result;
use std::collections::HashMap;
use std::hash::Hash;

/// Recordings of the same program for different shapes (a last short batch, a resized image),
/// made when first asked for.
pub struct Cache<K>(HashMap<K, Recording>);

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Cache(HashMap::new())
    }
}

impl<K: Eq + Hash> Cache<K> {
    /// The recording of that key; `record` makes it if there is none yet.
    ///
    /// # Errors
    /// Those of `record`; nothing is kept then.
    pub fn get(
        &mut self,
        key: K,
        record: impl FnOnce() -> Result<Recording>,
    ) -> Result<&mut Recording> {
        use std::collections::hash_map::Entry;
        Ok(match self.0.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(record()?),
        })
    }

    /// Whether there is a recording of that key.
    pub fn contains(&self, key: &K) -> bool {
        self.0.contains_key(key)
    }

    /// All recordings made so far.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Recording)> {
        self.0.iter()
    }
}
