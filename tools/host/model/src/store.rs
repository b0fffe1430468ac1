// SPDX-License-Identifier: GPL-2.0

//! Chunks of the COW device, one after the other.

use crate::units::{Chunk, Chunks};
use kernel::prelude::*;
use loom::sync::Mutex;

#[path = "../../../../store/format.rs"]
pub(crate) mod format;

/// Why no chunk was handed out: never.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoChunk {
    Full,
    NoMemory,
}

/// The store of a snapshot.
pub(crate) struct Store(Mutex<u64>);

impl Store {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(0))
    }

    pub(crate) fn alloc(
        &self,
        want: u64,
        _sectors: impl FnOnce() -> u64,
    ) -> Result<Chunks, NoChunk> {
        let mut next = self.0.lock().unwrap();
        let run = Chunks::new(Chunk(*next), want);
        *next = run.end;
        Ok(run)
    }

    /// Only what was handed out last comes back.
    pub(crate) fn give_back(&self, run: Chunks) {
        let mut next = self.0.lock().unwrap();
        assert_eq!(*next, run.end);
        *next = run.start;
    }

    pub(crate) fn grow(&self) -> Result {
        Ok(())
    }
}
