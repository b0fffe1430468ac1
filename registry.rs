// SPDX-License-Identifier: GPL-2.0

//! Who belongs to whom: the real origins, their slots, their snapshots, their origin targets.
//!
//! An [`Origin`] is a real origin device that some target of the module uses. There is one for
//! each device number, whoever came first, so the order in which tables are loaded does not
//! matter. Targets hold it by an [`OriginRef`].

#![deny(unsafe_code)]

use crate::{
    dm::{Bio, BioList, Client, Device, Handle, Queued, WorkQueue},
    exception::Table,
    live::Live,
    origin,
    pending::{ItemId, SnapId},
    slot::{Io, Shard, Slot},
    stats::OriginStats,
    units::{Sector, SpanSize, SLOTS},
};
use core::ops::Deref;
use kernel::{
    new_mutex, new_spinlock_irq, new_work,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full, Relaxed, Release},
        lock::spinlock::SpinLockIrqBackend,
        lock::Guard,
        Arc, Mutex, SpinLockIrq,
    },
    workqueue::{impl_has_work, Work, WorkItem},
};

/// All that the module's targets share.
#[pin_data]
pub(crate) struct Registry {
    #[pin]
    origins: Mutex<KVec<Entry>>,
    #[pin]
    cows: Mutex<KVec<CowUse>>,
    pub(crate) wq: Arc<WorkQueue>,
    /// For merges, which sleep until what runs on the other has ended.
    pub(crate) merge_wq: Arc<WorkQueue>,
    pub(crate) client: Arc<Client>,
    next_target_id: Atomic<u64>,
}

struct Entry {
    number: u32,
    users: usize,
    origin: Arc<Origin>,
}

/// A table's COW device and origin, by their numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
struct CowUse {
    cow: u32,
    origin: u32,
}

impl Registry {
    /// An empty registry. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let wq = Arc::new(WorkQueue::new(c"dm-snapshot-rs")?, GFP_KERNEL)?;
        let merge_wq = Arc::new(WorkQueue::new(c"dm-snap-merge-rs")?, GFP_KERNEL)?;
        let client = Arc::new(Client::new()?, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                origins <- new_mutex!(KVec::new(), "Registry::origins"),
                cows <- new_mutex!(KVec::new(), "Registry::cows"),
                wq,
                merge_wq,
                client,
                next_target_id: Atomic::new(1),
            }),
            GFP_KERNEL,
        )
    }

    /// A number that no other target has.
    pub(crate) fn new_target_id(&self) -> u64 {
        self.next_target_id.fetch_add(1, Relaxed)
    }

    /// Has a table use a COW device for its origin: from before it's read, and until all such
    /// tables are gone, no table of another origin can. May sleep.
    ///
    /// # Errors
    ///
    /// `EBUSY` if it is used for another origin; `ENOMEM`.
    pub(crate) fn cow(self: &Arc<Self>, device: &Device, origin: &OriginRef) -> Result<CowRef> {
        let own = CowUse {
            cow: device.number(),
            origin: origin.number,
        };
        let mut cows = self.cows.lock();
        if cows
            .iter()
            .any(|other| other.cow == own.cow && *other != own)
        {
            return Err(EBUSY);
        }
        cows.push(own, GFP_KERNEL)?;
        drop(cows);
        Ok(CowRef {
            own,
            registry: self.clone(),
        })
    }

    /// The origin on that device; made, if this is the first target that uses it. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn origin(self: &Arc<Self>, device: &Device) -> Result<OriginRef> {
        let number = device.number();
        let mut origins = self.origins.lock();
        let known = origins.iter_mut().find(|entry| entry.number == number);
        let origin = match known {
            Some(entry) => {
                entry.users = entry.users.saturating_add(1);
                entry.origin.clone()
            }
            None => {
                let origin = Origin::new(self)?;
                let entry = Entry {
                    number,
                    users: 1,
                    origin: origin.clone(),
                };
                origins.push(entry, GFP_KERNEL)?;
                origin
            }
        };
        drop(origins);
        Ok(OriginRef {
            origin,
            number,
            registry: self.clone(),
        })
    }
}

/// A target's hold on an [`Origin`].
pub(crate) struct OriginRef {
    origin: Arc<Origin>,
    number: u32,
    registry: Arc<Registry>,
}

impl Deref for OriginRef {
    type Target = Arc<Origin>;

    fn deref(&self) -> &Arc<Origin> {
        &self.origin
    }
}

impl Drop for OriginRef {
    fn drop(&mut self) {
        let mut origins = self.registry.origins.lock();
        let found = origins.iter().position(|e| e.number == self.number);
        let Some(index) = found else { return };
        let Some(entry) = origins.get_mut(index) else {
            return;
        };
        entry.users = entry.users.saturating_sub(1);
        if entry.users == 0 {
            let gone = origins.remove(index);
            drop(origins);
            drop(gone);
        }
    }
}

/// A table's hold on a COW device.
pub(crate) struct CowRef {
    own: CowUse,
    registry: Arc<Registry>,
}

impl Drop for CowRef {
    fn drop(&mut self) {
        let mut cows = self.registry.cows.lock();
        let found = cows.iter().position(|other| *other == self.own);
        if let Some(index) = found {
            let _ = cows.remove(index);
        }
    }
}

/// A target that is loaded on an origin and writes to it: one of the origin, or a merge.
struct Member {
    id: u64,
    handle: Handle,
    state: MemberState,
}

/// Whether a target's device has been resumed, or is about to be, and not suspended since.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemberState {
    Suspended,
    /// It runs, and others may write to the origin too.
    Shared,
    /// It runs, and no other device may write to the origin.
    Alone,
}

/// Who waits until fewer chunks are being copied.
struct Throttled {
    /// Bios of the origin.
    origin: BioList<Io>,
    /// Whether snapshots have bios that wait.
    has_snapshots: bool,
}

/// A real origin device, with all that is known of it.
#[pin_data]
pub(crate) struct Origin {
    slots: KVec<Pin<KBox<SpinLockIrq<Slot>>>>,
    /// The binary logarithm of the span, in sectors.
    span_shift: Atomic<u32>,
    /// Bios of the origin that are to be tried again.
    #[pin]
    ready: SpinLockIrq<BioList<Io>>,
    #[pin]
    retry_work: Work<Origin>,
    #[pin]
    throttled: SpinLockIrq<Throttled>,
    /// How many chunks are being copied.
    copying: Atomic<i64>,
    next_snap_id: Atomic<u32>,
    /// Origin and merge targets. Never held while a device is being suspended.
    #[pin]
    members: Mutex<KVec<Member>>,
    /// Held by a merge for the time of a batch, and by a snapshot that joins: what a batch writes
    /// must not change the image while that is being frozen.
    #[pin]
    pub(crate) merge_gate: Mutex<()>,
    /// Snapshots that a later table can take over. Held while one is constructed or joins.
    #[pin]
    pub(crate) snapshots: Mutex<KVec<Arc<Live>>>,
    pub(crate) wq: Arc<WorkQueue>,
    pub(crate) merge_wq: Arc<WorkQueue>,
    pub(crate) client: Arc<Client>,
    pub(crate) stats: OriginStats,
}

impl_has_work! {
    impl HasWork<Self> for Origin { self.retry_work }
}

/// Tries the origin's bios again.
impl WorkItem for Origin {
    type Pointer = Arc<Origin>;

    fn run(this: Arc<Origin>) {
        loop {
            // The lock must not be held while the bio is tried: hence no `while let`.
            let bio = this.ready.lock().pop();
            let Some(bio) = bio else { break };
            origin::retry(&this, bio);
        }
    }
}

fn handles_of(members: &[Member]) -> Result<KVec<Handle>> {
    let mut handles = KVec::with_capacity(members.len(), GFP_KERNEL)?;
    for member in members {
        handles.push(member.handle.clone(), GFP_KERNEL)?;
    }
    Ok(handles)
}

/// Gives bios back to device-mapper.
fn give_back(mut bios: BioList<Io>) {
    while let Some(bio) = bios.pop() {
        bio.requeue();
    }
}

/// A slot, locked.
pub(crate) type SlotGuard<'a> = Guard<'a, Slot, SpinLockIrqBackend>;

impl Origin {
    fn new(registry: &Registry) -> Result<Arc<Self>> {
        let mut slots = KVec::with_capacity(SLOTS, GFP_KERNEL)?;
        for _ in 0..SLOTS {
            let slot = Slot::new()?;
            let slot = KBox::pin_init(new_spinlock_irq!(slot, "Origin::slots"), GFP_KERNEL)?;
            slots.push(slot, GFP_KERNEL)?;
        }
        let throttled = Throttled {
            origin: BioList::new(),
            has_snapshots: false,
        };
        let (wq, client) = (registry.wq.clone(), registry.client.clone());
        let merge_wq = registry.merge_wq.clone();
        Arc::pin_init(
            pin_init!(Self {
                slots,
                span_shift: Atomic::new(SpanSize::MIN.shift()),
                ready <- new_spinlock_irq!(BioList::new(), "Origin::ready"),
                retry_work <- new_work!("Origin::retry_work"),
                throttled <- new_spinlock_irq!(throttled, "Origin::throttled"),
                copying: Atomic::new(0),
                next_snap_id: Atomic::new(1),
                members <- new_mutex!(KVec::new(), "Origin::members"),
                merge_gate <- new_mutex!((), "Origin::merge_gate"),
                snapshots <- new_mutex!(KVec::new(), "Origin::snapshots"),
                wq,
                merge_wq,
                client,
                stats: OriginStats::new(),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn new_snap_id(&self) -> SnapId {
        SnapId(self.next_snap_id.fetch_add(1, Relaxed))
    }

    /// The size of the spans. It only ever changes before the first snapshot joins.
    #[inline(always)]
    pub(crate) fn spans(&self) -> SpanSize {
        SpanSize::from_shift(self.span_shift.load(Acquire))
    }

    /// Locks the slot that a sector is in.
    #[inline(always)]
    pub(crate) fn lock_slot(&self, sector: Sector) -> Option<(u32, SlotGuard<'_>)> {
        loop {
            let index = self.spans().slot_of(sector);
            let slot = self.slot(index)?;
            // A snapshot with very large chunks may just have changed the span size.
            if self.spans().slot_of(sector) == index {
                return Some((index, slot));
            }
        }
    }

    /// Whether any snapshot may have to save what is written to this sector.
    pub(crate) fn has_snapshots(&self, sector: Sector) -> bool {
        let slot = self.lock_slot(sector);
        slot.is_some_and(|(_, slot)| !slot.shards.is_empty())
    }

    /// Locks a slot. `None` only for a number that no span has.
    #[inline(always)]
    pub(crate) fn slot(&self, index: u32) -> Option<SlotGuard<'_>> {
        Some(self.slots.get(index as usize)?.lock())
    }

    /// Something in flight has ended. Context: any.
    #[inline(always)]
    pub(crate) fn end_item(self: &Arc<Self>, slot: u32, item: ItemId) {
        let mut woken = BioList::new();
        if let Some(mut slot) = self.slot(slot) {
            let range = slot.flight.end(item);
            slot.wake(range, &mut woken);
        }
        self.retry(woken);
    }

    /// These bios of the origin are to be tried again. Context: any.
    #[inline]
    pub(crate) fn retry(self: &Arc<Self>, bios: BioList<Io>) {
        if !bios.is_empty() {
            self.retry_some(bios);
        }
    }

    fn retry_some(self: &Arc<Self>, bios: BioList<Io>) {
        self.ready.lock().append(bios);
        // If it is queued already, it will see them.
        let _ = self.wq.enqueue(self.clone());
    }

    /// Whether another snapshot than this is being merged. To be called with the lock of
    /// `snapshots`.
    pub(crate) fn is_merging_other(snapshots: &[Arc<Live>], id: Option<SnapId>) -> bool {
        let mut merging = snapshots.iter().filter(|live| live.is_merging());
        merging.any(|live| Some(live.id) != id)
    }

    /// A device is being suspended without a flush: gives those bios of the origin back to it that
    /// wait in the slots. They are of the target that has opened `device`. Context: process.
    pub(crate) fn give_back(&self, device: &Device) {
        for slot in &self.slots {
            let mut bios = BioList::new();
            slot.lock().take_origin(device, &mut bios);
            give_back(bios);
        }
    }

    /// The same for the bios of a snapshot.
    pub(crate) fn give_back_of(&self, id: SnapId, device: &Device) {
        for slot in &self.slots {
            let mut bios = BioList::new();
            slot.lock().take_snapshot(id, device, &mut bios);
            give_back(bios);
        }
    }

    /// Has everybody who waits try again.
    pub(crate) fn wake_all(self: &Arc<Self>) {
        let mut woken = BioList::new();
        for slot in &self.slots {
            slot.lock().wake_all(&mut woken);
        }
        self.retry(woken);
    }

    /// What has waited for room on COW devices does so no longer, and whatever else waits for it
    /// begins to do so anew.
    pub(crate) fn wait_for_space_anew(self: &Arc<Self>) {
        let has_waited = self.slot(0).is_some_and(|slot| {
            let shards = slot.shards.iter();
            shards.fold(false, |any, shard| shard.live.room.stop_waiting() | any)
        });
        if has_waited {
            self.wake_all();
        }
    }

    /// Whether so many chunks are being copied that no more should be begun.
    pub(crate) fn is_crowded(&self) -> bool {
        self.copying.load(Relaxed) >= crate::dm::cow_threshold()
    }

    /// So many chunks more, or less, are being copied.
    pub(crate) fn add_copying(self: &Arc<Self>, chunks: i64) {
        self.copying.fetch_add(chunks, Full);
        if chunks < 0 {
            self.unthrottle();
        }
    }

    /// A bio of the origin waits until fewer chunks are being copied.
    pub(crate) fn throttle(self: &Arc<Self>, mut bio: Bio<Io>) -> Queued {
        self.stats.throttled.add(1);
        bio.data_mut().wait();
        let queued = self.throttled.lock().origin.push(bio);
        // The last copy may have ended just before.
        self.unthrottle();
        queued
    }

    /// A bio of a snapshot waits until fewer chunks are being copied.
    pub(crate) fn throttle_snapshot(self: &Arc<Self>, live: &Arc<Live>, bio: Bio<Io>) -> Queued {
        let mut throttled = self.throttled.lock();
        let queued = live.throttle(bio);
        throttled.has_snapshots = true;
        drop(throttled);
        self.unthrottle();
        queued
    }

    /// Lets those try again that wait for fewer chunks to be copied, if there are fewer now.
    fn unthrottle(self: &Arc<Self>) {
        if self.is_crowded() {
            return;
        }
        let mut throttled = self.throttled.lock();
        let origin = throttled.origin.take();
        let has_snapshots = core::mem::take(&mut throttled.has_snapshots);
        drop(throttled);
        self.retry(origin);
        // The snapshots are in each slot, and in the same order.
        let Some(slot) = self.slot(0).filter(|_| has_snapshots) else {
            return;
        };
        for shard in &slot.shards {
            shard.live.unthrottle();
        }
    }

    /// A target that writes to the origin has been loaded.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. May sleep.
    pub(crate) fn add_member(&self, id: u64, handle: Handle) -> Result {
        let member = Member {
            id,
            handle,
            state: MemberState::Suspended,
        };
        Ok(self.members.lock().push(member, GFP_KERNEL)?)
    }

    /// The device of such a target is about to be resumed, or has been suspended. May sleep.
    ///
    /// # Errors
    ///
    /// `EBUSY` if another device runs, and one of the two must be alone.
    pub(crate) fn set_member(&self, id: u64, state: MemberState) -> Result {
        let mut members = self.members.lock();
        let Some(at) = members.iter().position(|member| member.id == id) else {
            return Ok(());
        };
        let Some(own) = members.get(at).map(|member| member.handle.clone()) else {
            return Ok(());
        };
        let excludes = |other: &Member| match (state, other.state) {
            (MemberState::Suspended, _) | (_, MemberState::Suspended) => false,
            (MemberState::Shared, MemberState::Shared) => false,
            _ => other.id != id && !other.handle.replaces(&own),
        };
        if members.iter().any(excludes) {
            return Err(EBUSY);
        }
        if let Some(member) = members.get_mut(at) {
            member.state = state;
        }
        Ok(())
    }

    /// A target that writes to the origin is being destroyed. May sleep.
    pub(crate) fn remove_member(&self, id: u64) {
        self.members.lock().retain(|member| member.id != id);
    }

    /// Does something, to which no target that writes to the origin comes meanwhile, and answers
    /// those that there are. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and then nothing has been done; or what it answers.
    pub(crate) fn with_members(&self, f: impl FnOnce() -> Result) -> Result<KVec<Handle>> {
        let members = self.members.lock();
        let handles = handles_of(&members)?;
        f()?;
        Ok(handles)
    }

    /// A snapshot joins the slots, each with its part of the exceptions, and becomes active.
    /// `tables` has one for each slot, dealt out by that span size; they are taken. Answers the
    /// origin targets that may have bios which were mapped before. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EBUSY` if the snapshot needs other spans than those that are in use. Nothing
    /// has changed then.
    pub(crate) fn join(
        &self,
        live: &Arc<Live>,
        tables: &mut KVec<Table>,
        spans: SpanSize,
    ) -> Result<KVec<Handle>> {
        // Nothing is in the slots that would have to be dealt out anew, as long as there are no
        // snapshots: without them nothing is ever in flight.
        let joined = self.slot(0).map_or(0, |slot| slot.shards.len());
        if spans != self.spans() && joined != 0 {
            return Err(EBUSY);
        }
        // All memory comes first. Only one snapshot joins or leaves at a time, as its caller holds
        // the lock of them all, so there is room enough then.
        let mut rooms = KVec::with_capacity(SLOTS, GFP_KERNEL)?;
        for _ in 0..SLOTS {
            let room = KVec::with_capacity(joined.saturating_add(1), GFP_KERNEL)?;
            rooms.push(room, GFP_KERNEL)?;
        }
        let members = self.members.lock();
        let handles = handles_of(&members)?;
        self.span_shift.store(spans.shift(), Release);
        for ((lock, room), table) in self.slots.iter().zip(rooms).zip(tables.iter_mut()) {
            let table = core::mem::replace(table, Table::new());
            lock.lock().add_shard(room, Shard::new(live.clone(), table));
        }
        // All slots know the snapshot. This one store is the moment that is frozen: every write
        // that is mapped after it saves the old data first.
        live.set_active(true);
        Ok(handles)
    }

    /// A snapshot leaves the slots. The caller holds the lock of all snapshots. May sleep.
    pub(crate) fn remove_shards(&self, id: SnapId) {
        for slot in &self.slots {
            let gone = slot.lock().remove_shard(id);
            drop(gone);
        }
    }
}
