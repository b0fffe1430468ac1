// SPDX-License-Identifier: GPL-2.0

//! A COW device without metadata: what it holds is known as long as the snapshot is loaded.

#![deny(unsafe_code)]

use super::{area::Allocator, NoChunk};
use crate::units::{ChunkSize, Chunks};
use kernel::{
    new_spinlock_irq,
    prelude::*,
    sync::SpinLockIrq, //
};

/// A transient store.
#[pin_data]
pub(crate) struct Transient {
    chunk_size: ChunkSize,
    #[pin]
    allocator: SpinLockIrq<Allocator>,
}

impl Transient {
    /// A store on a COW device of `sectors` sectors. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(chunk_size: ChunkSize, sectors: u64) -> Result<impl PinInit<Self>> {
        let mut allocator = Allocator::transient(sectors >> chunk_size.shift());
        allocator.reserve()?;
        Ok(pin_init!(Self {
            chunk_size,
            allocator <- new_spinlock_irq!(allocator, "Transient::allocator"),
        }))
    }

    /// See [`super::Store::alloc`].
    pub(super) fn alloc(
        &self,
        want: u64,
        sectors: impl FnOnce() -> u64,
    ) -> Result<Chunks, NoChunk> {
        let mut allocator = self.allocator.lock();
        allocator.set_total(sectors() >> self.chunk_size.shift());
        allocator.alloc(want).ok_or(NoChunk::Full)
    }

    /// See [`super::Store::give_back`].
    pub(super) fn give_back(&self, run: Chunks) {
        // Where there is no room to remember them, the chunks stay unused, which loses nothing
        // but their space.
        let _ = self.allocator.lock().give_back(run);
    }

    /// How many chunks are free.
    pub(super) fn free_chunks(&self) -> u64 {
        self.allocator.lock().free_chunks()
    }

    /// How many chunks have been handed out.
    pub(super) fn used_chunks(&self) -> u64 {
        self.allocator.lock().next_free().0
    }
}
