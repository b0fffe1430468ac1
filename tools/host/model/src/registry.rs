// SPDX-License-Identifier: GPL-2.0

//! A real origin with a single slot: the steps of `registry.rs` and `origin.rs`.

use crate::dm::{Bio, BioList, Device, Mapped, Queued};
use crate::live::Live;
use crate::pending::{ItemId, SnapId};
use crate::saving::{self, Outcome, Writer};
use crate::slot::{Io, Shard, Slot};
use crate::units::{Sector, SpanSize};
use crate::world::{Job, World};
use kernel::prelude::*;
use kernel::sync::Arc;
use loom::sync::{Mutex, MutexGuard};

/// A real origin.
pub(crate) struct Origin {
    slot: Mutex<Slot>,
    ready: Mutex<BioList<Io>>,
    pub(crate) world: Arc<World>,
}

/// A slot, locked.
pub(crate) type SlotGuard<'a> = MutexGuard<'a, Slot>;

impl Origin {
    pub(crate) fn new(world: &Arc<World>) -> Arc<Self> {
        Arc::new(Self {
            slot: Mutex::new(Slot::new().unwrap()),
            ready: Mutex::new(BioList::new()),
            world: world.clone(),
        })
    }

    pub(crate) fn spans(&self) -> SpanSize {
        SpanSize::MIN
    }

    pub(crate) fn lock_slot(&self, _sector: Sector) -> Option<(u32, SlotGuard<'_>)> {
        Some((0, self.slot(0)?))
    }

    pub(crate) fn slot(&self, _index: u32) -> Option<SlotGuard<'_>> {
        Some(self.slot.lock().unwrap())
    }

    pub(crate) fn end_item(self: &Arc<Self>, slot: u32, item: ItemId) {
        let mut woken = BioList::new();
        if let Some(mut slot) = self.slot(slot) {
            let range = slot.flight.end(item);
            slot.wake(range, &mut woken);
        }
        self.retry(woken);
    }

    pub(crate) fn retry(self: &Arc<Self>, bios: BioList<Io>) {
        if bios.is_empty() {
            return;
        }
        self.ready.lock().unwrap().append(bios);
        self.world.queue(Job::RetryOrigin(self.clone()));
    }

    /// The work of [`Self::retry`].
    pub(crate) fn run_retry(self: &Arc<Self>) {
        loop {
            let bio = self.ready.lock().unwrap().pop();
            let Some(bio) = bio else { break };
            self.write(bio).settle();
        }
    }

    pub(crate) fn wake_all(self: &Arc<Self>) {
        let mut woken = BioList::new();
        self.slot.lock().unwrap().wake_all(&mut woken);
        self.retry(woken);
    }

    pub(crate) fn is_crowded(&self) -> bool {
        false
    }

    pub(crate) fn throttle_snapshot(&self, _live: &Arc<Live>, _bio: Bio<Io>) -> Queued {
        unreachable!()
    }

    /// A snapshot joins, as the first thing that happens.
    pub(crate) fn join(&self, live: &Arc<Live>) {
        let mut slot = self.slot.lock().unwrap();
        let room = KVec::with_capacity(slot.shards.len() + 1, GFP_KERNEL).unwrap();
        let table = crate::exception::Table::new();
        slot.add_shard(room, Shard::new(live.clone(), table));
    }

    pub(crate) fn remove_shards(&self, id: SnapId) {
        let gone = self.slot.lock().unwrap().remove_shard(id);
        drop(gone);
    }

    /// `origin.rs`: a write to the origin that has been sent to DEV, new or tried again.
    pub(crate) fn write(self: &Arc<Self>, mut bio: Bio<Io>) -> Mapped<Io> {
        bio.remap(&Device::Dev, Sector(bio.sectors().start));
        let wait = |slot: &mut Slot, bio, _| slot.wait_origin(bio);
        match saving::save(self, bio.sectors(), Writer::Bio, bio, wait) {
            Outcome::Go(bio) => Mapped::Remapped(bio),
            Outcome::Waits(waits) => waits,
            Outcome::Throttle(_) | Outcome::NoSpace(_) => unreachable!(),
        }
    }
}
