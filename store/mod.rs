// SPDX-License-Identifier: GPL-2.0

//! Where saved data lies on the COW device, and what makes the knowledge of it last.
//!
//! - `format.rs`: the persistent format, as bytes;
//! - `area.rs`: which chunks are free, where the next record goes, what has to be zeroed;
//! - `load.rs`: metadata is read, or made, when a snapshot is activated;
//! - `persistent.rs`: a COW device in that format: its records on their way to it;
//! - `transient.rs`: a COW device without metadata, for as long as the module is loaded.

#![deny(unsafe_code)]

pub(crate) mod area;
pub(crate) mod format;
pub(crate) mod load;
pub(crate) mod persistent;
pub(crate) mod transient;

use crate::units::{ChunkSize, Chunks};
use kernel::prelude::*;
use persistent::Persistent;
use transient::Transient;

/// The store of a snapshot.
pub(crate) enum Store {
    Persistent(Pin<KBox<Persistent>>),
    Transient(Pin<KBox<Transient>>),
}

/// Why no chunk was handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoChunk {
    /// The COW device is full.
    Full,
    /// There was no memory to keep track of it; later there may be.
    NoMemory,
}

/// What the status line says of a COW device, in sectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Usage {
    pub(crate) allocated: u64,
    pub(crate) total: u64,
    pub(crate) metadata: u64,
}

impl Store {
    /// Hands out at most `want` consecutive chunks of a COW device. `sectors` tells how many sectors
    /// that has; it is asked under the store's lock, so that no earlier size is taken for a later
    /// one.
    ///
    /// # Errors
    ///
    /// See [`NoChunk`]. Context: under the lock of a slot.
    pub(crate) fn alloc(
        &self,
        want: u64,
        sectors: impl FnOnce() -> u64,
    ) -> Result<Chunks, NoChunk> {
        match self {
            Store::Persistent(store) => store.alloc(want, sectors),
            Store::Transient(store) => store.alloc(want, sectors),
        }
    }

    /// Takes note of how many sectors the COW device has now, as in [`Self::alloc`]. Nobody tells
    /// of a change, so this is called at each occasion. Context: any.
    pub(crate) fn resize(&self, sectors: impl FnOnce() -> u64) {
        match self {
            Store::Persistent(store) => store.resize(sectors),
            // It looks at the size with each chunk, and keeps nothing else.
            Store::Transient(_) => {}
        }
    }

    /// After [`NoChunk::NoMemory`]: gets more memory to keep track of chunks. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn grow(&self) -> Result {
        match self {
            Store::Persistent(store) => store.grow(),
            Store::Transient(_) => Ok(()),
        }
    }

    /// Takes chunks back that were handed out and not used.
    ///
    /// Context: under the lock of a slot.
    pub(crate) fn give_back(&self, run: Chunks) {
        match self {
            Store::Persistent(store) => store.give_back(run),
            Store::Transient(store) => store.give_back(run),
        }
    }

    /// How much of a COW device of `sectors` sectors is in use. May be called at any time.
    pub(crate) fn usage(&self, size: ChunkSize, sectors: u64) -> Usage {
        let (allocated, metadata) = match self {
            Store::Persistent(store) => store.used_chunks(),
            Store::Transient(store) => (store.used_chunks(), 0),
        };
        Usage {
            allocated: allocated.saturating_mul(size.sectors()),
            total: sectors,
            metadata: metadata.saturating_mul(size.sectors()),
        }
    }

    /// How many chunks of the COW device are free. Context: any.
    pub(crate) fn free_chunks(&self) -> u64 {
        match self {
            Store::Persistent(store) => store.free_chunks(),
            Store::Transient(store) => store.free_chunks(),
        }
    }

    /// The persistent store, if this is one.
    pub(crate) fn persistent(&self) -> Option<&Persistent> {
        match self {
            Store::Persistent(store) => Some(store),
            Store::Transient(_) => None,
        }
    }
}
