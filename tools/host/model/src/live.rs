// SPDX-License-Identifier: GPL-2.0

//! A live snapshot: the steps of `live.rs`.

use crate::commit::Urgency;
use crate::dm::{BioList, Device};
use crate::pending::{ItemId, Kind, Phase, Saved, SnapId};
use crate::registry::Origin;
use crate::room::{NoRoom, Room};
use crate::scenario::Measure;
use crate::slot::Io;
use crate::stats::SnapStats;
use crate::store::Store;
use crate::units::{ChunkSize, Chunks, Sector, Sectors};
use crate::world::{Job, World, DEV_SECTORS};
use kernel::{
    prelude::{Result, EIO},
    sync::Arc,
};
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use loom::sync::{Condvar, Mutex};

/// Whether a snapshot can be relied on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Health {
    Good,
    Overflowed,
    Failing,
    Invalid,
}

/// Why a snapshot becomes invalid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    CowFull,
    WriteCow,
    NoMemory,
    Inconsistent,
}

/// The devices of a snapshot.
#[derive(Clone)]
pub(crate) struct Devices {
    pub(crate) origin: Device,
    pub(crate) cow: Device,
}

/// A live snapshot.
pub(crate) struct Live {
    pub(crate) id: SnapId,
    pub(crate) origin: Arc<Origin>,
    pub(crate) chunk_size: ChunkSize,
    pub(crate) cow_block: u64,
    pub(crate) store: Store,
    pub(crate) stats: SnapStats,
    pub(crate) world: Arc<World>,
    pub(crate) is_persistent: bool,
    pub(crate) room: Room,
    /// How long the snapshot is, in sectors.
    sectors: AtomicU64,
    health: AtomicU32,
    is_active: AtomicBool,
    busy: Mutex<u64>,
    idle: Condvar,
    ready: Mutex<BioList<Io>>,
    pub(crate) records: Mutex<Vec<Saved>>,
    pub(crate) is_due: AtomicBool,
    /// What is on the COW device, by sector.
    cow: Mutex<Vec<u8>>,
    /// Writes to the COW device fail.
    is_broken: bool,
}

impl Live {
    pub(crate) fn new(
        id: u32,
        origin: &Arc<Origin>,
        chunk: u64,
        is_persistent: bool,
        is_broken: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: SnapId(id),
            origin: origin.clone(),
            chunk_size: ChunkSize::from_sectors(chunk).unwrap(),
            cow_block: 1,
            store: Store::new(),
            stats: SnapStats::new(),
            world: origin.world.clone(),
            is_persistent,
            room: Room,
            sectors: AtomicU64::new(DEV_SECTORS),
            health: AtomicU32::new(Health::Good as u32),
            is_active: AtomicBool::new(true),
            busy: Mutex::new(0),
            idle: Condvar::new(),
            ready: Mutex::new(BioList::new()),
            records: Mutex::new(Vec::new()),
            is_due: AtomicBool::new(false),
            cow: Mutex::new(vec![b'?'; 2 * DEV_SECTORS as usize]),
            is_broken,
        })
    }

    pub(crate) fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            0 => Health::Good,
            1 => Health::Overflowed,
            2 => Health::Failing,
            _ => Health::Invalid,
        }
    }

    pub(crate) fn is_lost(&self) -> bool {
        matches!(self.health(), Health::Failing | Health::Invalid)
    }

    pub(crate) fn set_active(&self, is_active: bool) {
        self.is_active.store(is_active, Ordering::Release);
    }

    pub(crate) fn guards(&self) -> Health {
        if !self.is_active.load(Ordering::Acquire) {
            return Health::Invalid;
        }
        self.health()
    }

    pub(crate) fn devices(&self) -> Option<Devices> {
        Some(Devices {
            origin: Device::Dev,
            cow: Device::Cow,
        })
    }

    /// Takes over what another table says: where the snapshot ends.
    pub(crate) fn set_table(&self, end: u64) {
        let is_shorter = end < self.end();
        self.sectors.store(end, Ordering::Release);
        // A write may just have been found to need a copy, and then not.
        if is_shorter && self.world.has(Measure::Waking) {
            self.origin.wake_all();
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    pub(crate) fn chunks_of(&self, range: Sectors) -> Chunks {
        self.chunk_size.chunks_of(range)
    }

    pub(crate) fn own_chunks_of(&self, mut range: Sectors) -> Chunks {
        range.end = range.end.min(self.end());
        self.chunks_of(range)
    }

    pub(crate) fn end_of_first_chunk(&self, range: Sectors) -> Sector {
        let one = Sectors::new(Sector(range.start), 1);
        let chunk = self.chunk_size.sectors_of(self.chunks_of(one));
        Sector(chunk.end.min(range.end))
    }

    pub(crate) fn persistent(&self) -> Option<()> {
        self.is_persistent.then_some(())
    }

    pub(crate) fn copy_kind(&self) -> Kind {
        if self.is_persistent {
            Kind::Copied
        } else {
            Kind::CopiedTransient
        }
    }

    pub(crate) fn count_wait(&self, _: &Io) {}

    pub(crate) fn start_busy(&self) {
        *self.busy.lock().unwrap() += 1;
    }

    pub(crate) fn end_busy(&self) {
        let mut busy = self.busy.lock().unwrap();
        *busy -= 1;
        if *busy == 0 {
            self.idle.notify_all();
        }
    }

    fn wait_idle(&self) {
        let mut busy = self.busy.lock().unwrap();
        while *busy != 0 {
            busy = self.idle.wait(busy).unwrap();
        }
    }

    pub(crate) fn took_room(&self, _sectors: u64) {}

    pub(crate) fn stir_merge(&self) {}

    pub(crate) fn no_room(self: &Arc<Self>, why: Failure, _is_own: bool) -> NoRoom {
        self.fail(why);
        NoRoom::GivenUp
    }

    pub(crate) fn retry(self: &Arc<Self>, bios: BioList<Io>) {
        if bios.is_empty() {
            return;
        }
        self.ready.lock().unwrap().append(bios);
        self.world.queue(Job::RetrySnapshot(self.clone()));
    }

    /// The work of [`Self::retry`].
    pub(crate) fn run_retry(self: &Arc<Self>) {
        loop {
            let bio = self.ready.lock().unwrap().pop();
            let Some(bio) = bio else { break };
            crate::route::retry(self, bio);
        }
    }

    pub(crate) fn fail(self: &Arc<Self>, _why: Failure) {
        let changed = self.health.compare_exchange(
            Health::Good as u32,
            Health::Failing as u32,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        if changed.is_ok() {
            self.start_busy();
            self.world.queue(Job::Invalidate(self.clone()));
        }
    }

    /// The work of [`Self::fail`].
    pub(crate) fn invalidate(self: &Arc<Self>) {
        self.world.mark_header(self.id);
        self.health.store(Health::Invalid as u32, Ordering::Release);
        self.origin.wake_all();
        self.queue_commit();
        self.end_busy();
    }

    pub(crate) fn end_exception(self: &Arc<Self>, slot: u32, item: ItemId) {
        self.origin.end_item(slot, item);
        self.end_busy();
    }

    pub(crate) fn saved(self: &Arc<Self>, saved: Saved, mut urgency: Urgency) {
        if !self.is_persistent {
            self.world.cover(self.id, self.chunk_size, &[saved]);
            return self.end_exception(saved.slot, saved.item);
        }
        let Some(mut slot) = self.origin.slot(saved.slot) else {
            return;
        };
        self.start_busy();
        let range = slot.flight.advance(saved.item, Phase::Volatile);
        if urgency == Urgency::Later && slot.has_origin_waiting(range) {
            urgency = Urgency::Now;
        }
        self.records.lock().unwrap().push(saved);
        slot.wake_snapshots(range);
        drop(slot);
        self.record_added(urgency);
        self.end_busy();
    }

    pub(crate) fn not_saved(self: &Arc<Self>, slot: u32, item: ItemId, why: Failure) {
        self.fail(why);
        self.end_exception(slot, item);
    }

    /// Nothing is saved any more, all that is under way comes to its end.
    pub(crate) fn leave(self: &Arc<Self>) {
        self.set_active(false);
        self.origin.wake_all();
        self.commit_now();
        self.wait_idle();
        self.origin.remove_shards(self.id);
        self.origin.wake_all();
    }

    /// The COW device writes these sectors.
    pub(crate) fn write_cow(&self, at: Sector, data: &[u8]) -> Result {
        if self.is_broken {
            return Err(EIO);
        }
        let at = at.0 as usize;
        self.cow.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    /// The COW device reads these sectors.
    pub(crate) fn read_cow(&self, at: Sector, sectors: u64) -> Vec<u8> {
        let at = at.0 as usize;
        self.cow.lock().unwrap()[at..at + sectors as usize].to_vec()
    }
}
