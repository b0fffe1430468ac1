// SPDX-License-Identifier: GPL-2.0

//! A live snapshot: what outlasts the table that activated it.
//!
//! A table can be replaced while a snapshot is in use; its exceptions, its store and its bios'
//! whereabouts go on. They belong to a [`Live`], which the slots of the origin, the copies under
//! way and the target of the present table share.

#![deny(unsafe_code)]

use crate::{
    commit::{Commit, Urgency},
    dm::{Bio, BioList, Buffer, Client, Device, Handle, NoIo, Queued, WorkQueue},
    dm_err,
    exception::Table,
    merge,
    merger::Merge,
    pending::{ItemId, Kind, Phase, Saved, SnapId},
    registry::Origin,
    room::{Room, SPACE_INTERVAL_MS},
    route,
    slot::Io,
    stats::SnapStats,
    store::{load, persistent::Persistent, Store},
    table::{Features, StoreType},
    units::{ChunkSize, Chunks, Sector, Sectors, SpanSize},
};
use kernel::{
    fmt, new_condvar, new_delayed_work, new_mutex, new_spinlock_irq, new_work,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full, Release},
        Arc, CondVar, Mutex, SpinLockIrq,
    },
    workqueue::{impl_has_delayed_work, impl_has_work, DelayedWork, Work, WorkItem},
};

/// Whether a snapshot can be relied on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Health {
    /// All is well.
    Good,
    /// The COW device was full when the snapshot itself was written to (store type PO): it can
    /// be read, and still guards what the origin changes.
    Overflowed,
    /// Something went wrong. Origin writes wait until this is on the COW device, or a crash
    /// would bring back a snapshot that lacks data.
    Failing,
    /// The snapshot is of no use any more, and the origin goes its way.
    Invalid,
}

impl Health {
    const ALL: [Health; 4] = [
        Health::Good,
        Health::Overflowed,
        Health::Failing,
        Health::Invalid,
    ];

    fn from_u32(value: u32) -> Self {
        let found = Self::ALL.get(value as usize);
        found.copied().unwrap_or(Health::Invalid)
    }
}

/// Why a snapshot becomes invalid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// There is no free chunk on the COW device.
    CowFull,
    /// The metadata of the COW device has come to the device's end.
    MetadataFull,
    /// The old data could not be read from the origin.
    ReadOrigin,
    /// Data could not be written to the COW device.
    WriteCow,
    /// Metadata could not be written to the COW device.
    WriteMetadata,
    /// There was no memory, and nothing to wait for.
    NoMemory,
    /// Two exceptions for one chunk: a fault of the module.
    Inconsistent,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::CowFull => "the COW device is full",
            Failure::MetadataFull => "the COW device has no room for more metadata",
            Failure::ReadOrigin => "old data could not be read from the origin",
            Failure::WriteCow => "old data could not be written to the COW device",
            Failure::WriteMetadata => "metadata could not be written to the COW device",
            Failure::NoMemory => "there is no memory for an exception",
            Failure::Inconsistent => "internal error: a chunk is mapped twice",
        })
    }
}

/// The two devices beneath a snapshot, as the target of the present table has opened them.
#[derive(Clone)]
pub(crate) struct Devices {
    pub(crate) origin: Device,
    pub(crate) cow: Device,
}

/// Exceptions that were read from the COW device, dealt out to the slots.
pub(crate) struct Dealt {
    pub(crate) tables: KVec<Table>,
    pub(crate) spans: SpanSize,
}

/// Which tables have to do with a snapshot.
pub(crate) struct Tenure {
    /// The exceptions, until the snapshot joins its origin.
    pub(crate) waiting: Option<Dealt>,
    /// The target that answers for the snapshot.
    pub(crate) owner: Option<Owner>,
    /// The lines of all tables that there are with it, the owner's included.
    pub(crate) lines: KVec<Line>,
    /// The snapshot is leaving its origin, or has left: no table can go on with it.
    pub(crate) has_left: bool,
}

/// What a table line says of a snapshot.
#[derive(Clone)]
pub(crate) struct Line {
    /// Which target it has become.
    pub(crate) id: u64,
    /// That target.
    pub(crate) handle: Handle,
    pub(crate) devices: Devices,
    /// Where it ends, in sectors.
    pub(crate) end: u64,
    pub(crate) store_type: StoreType,
    pub(crate) features: Features,
}

/// The target of the present table.
pub(crate) struct Owner {
    /// Which target it is.
    pub(crate) id: u64,
    /// How to raise its events.
    pub(crate) handle: Handle,
    /// Whether its device has been resumed, or is about to be, and not suspended since.
    pub(crate) is_running: bool,
}

/// A live snapshot.
#[pin_data]
pub(crate) struct Live {
    pub(crate) id: SnapId,
    pub(crate) origin: Arc<Origin>,
    pub(crate) chunk_size: ChunkSize,
    pub(crate) store: Store,
    /// The COW device's number, by which a later table finds this snapshot.
    pub(crate) cow_number: u32,
    /// The logical block of the COW device, in sectors.
    pub(crate) cow_block: u64,
    /// How long the snapshot is, in sectors.
    sectors: Atomic<u64>,
    /// Whether store type `PO` was asked for: userspace knows about overflow.
    reports_overflow: Atomic<u32>,
    #[pin]
    pub(crate) room: Room,
    pub(crate) stats: SnapStats,
    /// Whether its exceptions go back to the origin; once they do, it never guards again.
    is_merging: Atomic<u32>,
    #[pin]
    pub(crate) merge: SpinLockIrq<Merge>,
    #[pin]
    pub(crate) merge_changed: CondVar,
    pub(crate) client: Arc<Client>,
    wq: Arc<WorkQueue>,
    /// What a COW device with metadata is marked with when the snapshot is lost: there may be no
    /// memory then (rule R6).
    invalid_header: Option<Buffer>,
    health: Atomic<u32>,
    /// Whether origin writes have to save old data for it.
    is_active: Atomic<u32>,
    #[pin]
    devices: SpinLockIrq<Option<Devices>>,
    /// Never held while something under way is waited for.
    #[pin]
    pub(crate) tenure: Mutex<Tenure>,
    /// How many things are under way that need the snapshot: exceptions, and its invalidation.
    #[pin]
    busy: SpinLockIrq<u64>,
    #[pin]
    idle: CondVar,
    /// Bios of the snapshot that are to be tried again.
    #[pin]
    ready: SpinLockIrq<BioList<Io>>,
    /// Bios of the snapshot that wait until fewer chunks are being copied.
    #[pin]
    throttled: SpinLockIrq<BioList<Io>>,
    #[pin]
    pub(crate) commit: SpinLockIrq<Commit>,
    #[pin]
    pub(crate) committed: CondVar,
    #[pin]
    retry_work: Work<Live, 0>,
    #[pin]
    commit_work: Work<Live, 1>,
    #[pin]
    invalidate_work: Work<Live, 2>,
    #[pin]
    commit_timer: DelayedWork<Live, 3>,
    #[pin]
    merge_work: Work<Live, 4>,
    #[pin]
    space_timer: DelayedWork<Live, 5>,
    #[pin]
    event_work: Work<Live, 6>,
    #[pin]
    wave_timer: DelayedWork<Live, 7>,
}

impl_has_work! {
    impl HasWork<Self, 0> for Live { self.retry_work }
    impl HasWork<Self, 1> for Live { self.commit_work }
    impl HasWork<Self, 2> for Live { self.invalidate_work }
    impl HasWork<Self, 4> for Live { self.merge_work }
    impl HasWork<Self, 6> for Live { self.event_work }
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self, 3> for Live { self.commit_timer }
    impl HasDelayedWork<Self, 5> for Live { self.space_timer }
    impl HasDelayedWork<Self, 7> for Live { self.wave_timer }
}

/// Tries the snapshot's bios again.
impl WorkItem<0> for Live {
    type Pointer = Arc<Live>;

    fn run(this: Arc<Live>) {
        loop {
            // The lock must not be held while the bio is tried: hence no `while let`.
            let bio = this.ready.lock().pop();
            let Some(bio) = bio else { break };
            if this.is_merging() {
                merge::retry(&this, bio);
            } else {
                route::retry(&this, bio);
            }
        }
    }
}

/// Ends a commit and begins the next.
impl WorkItem<1> for Live {
    type Pointer = Arc<Live>;

    fn run(this: Arc<Live>) {
        this.run_commit();
    }
}

/// Makes an invalidation known, to the COW device first.
impl WorkItem<2> for Live {
    type Pointer = Arc<Live>;

    fn run(this: Arc<Live>) {
        this.invalidate();
    }
}

/// The time is up for records that were put off.
impl WorkItem<3> for Live {
    type Pointer = Arc<Live>;

    fn run(this: Arc<Live>) {
        this.commit_now();
    }
}

/// Merges, batch by batch.
impl WorkItem<4> for Live {
    type Pointer = Arc<Live>;

    fn run(this: Arc<Live>) {
        this.run_merge();
    }
}

/// Looks whether a full COW device has grown.
impl WorkItem<5> for Live {
    type Pointer = Arc<Live>;

    fn run(this: Arc<Live>) {
        this.look_for_space();
    }
}

/// Wakes whoever waits for an event of the snapshot's device.
impl WorkItem<6> for Live {
    type Pointer = Arc<Live>;

    fn run(this: Arc<Live>) {
        if let Some(owner) = &this.tenure.lock().owner {
            owner.handle.raise_event();
        }
    }
}

/// The time is up for copies that a commit waits for.
impl WorkItem<7> for Live {
    type Pointer = Arc<Live>;

    fn run(this: Arc<Live>) {
        this.end_wave();
    }
}

/// What a [`Live`] is made from.
pub(crate) struct NewLive {
    pub(crate) origin: Arc<Origin>,
    pub(crate) chunk_size: ChunkSize,
    pub(crate) store: Store,
    pub(crate) cow_number: u32,
    pub(crate) cow_block: u64,
    pub(crate) waiting: Dealt,
    pub(crate) is_valid: bool,
    pub(crate) invalid_header: Option<Buffer>,
    pub(crate) client: Arc<Client>,
    pub(crate) wq: Arc<WorkQueue>,
}

impl Live {
    /// A snapshot that is not active yet. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(from: NewLive) -> Result<Arc<Self>> {
        let id = from.origin.new_snap_id();
        let health = if from.is_valid {
            Health::Good
        } else {
            Health::Invalid
        };
        let commit = Commit::new(from.store.persistent())?;
        let tenure = Tenure {
            waiting: Some(from.waiting),
            owner: None,
            lines: KVec::new(),
            has_left: false,
        };
        Arc::pin_init(
            pin_init!(Self {
                id,
                origin: from.origin,
                chunk_size: from.chunk_size,
                store: from.store,
                cow_number: from.cow_number,
                cow_block: from.cow_block,
                sectors: Atomic::new(0),
                reports_overflow: Atomic::new(0),
                room <- Room::new(),
                stats: SnapStats::new(),
                is_merging: Atomic::new(0),
                merge <- new_spinlock_irq!(Merge::new(), "Live::merge"),
                merge_changed <- new_condvar!("Live::merge_changed"),
                client: from.client,
                wq: from.wq,
                invalid_header: from.invalid_header,
                health: Atomic::new(health as u32),
                is_active: Atomic::new(0),
                devices <- new_spinlock_irq!(None, "Live::devices"),
                tenure <- new_mutex!(tenure, "Live::tenure"),
                busy <- new_spinlock_irq!(0, "Live::busy"),
                idle <- new_condvar!("Live::idle"),
                ready <- new_spinlock_irq!(BioList::new(), "Live::ready"),
                throttled <- new_spinlock_irq!(BioList::new(), "Live::throttled"),
                commit <- new_spinlock_irq!(commit, "Live::commit"),
                committed <- new_condvar!("Live::committed"),
                retry_work <- new_work!("Live::retry_work"),
                commit_work <- new_work!("Live::commit_work"),
                invalidate_work <- new_work!("Live::invalidate_work"),
                commit_timer <- new_delayed_work!("Live::commit_timer"),
                merge_work <- new_work!("Live::merge_work"),
                space_timer <- new_delayed_work!("Live::space_timer"),
                event_work <- new_work!("Live::event_work"),
                wave_timer <- new_delayed_work!("Live::wave_timer"),
            }),
            GFP_KERNEL,
        )
    }

    /// How the snapshot is. Context: any.
    pub(crate) fn health(&self) -> Health {
        Health::from_u32(self.health.load(Acquire))
    }

    /// Whether it can't be used any more. Context: any.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self.health(), Health::Failing | Health::Invalid)
    }

    /// How it is for an origin write, for which a snapshot that is inactive or goes back to its
    /// origin counts as invalid.
    pub(crate) fn guards(&self) -> Health {
        if !self.is_active() || self.is_merging() {
            return Health::Invalid;
        }
        self.health()
    }

    /// From now on, origin writes save old data for it, or no longer.
    pub(crate) fn set_active(&self, is_active: bool) {
        self.is_active.store(u32::from(is_active), Release);
    }

    /// The devices to send I/O to; `None` when there is no table.
    pub(crate) fn devices(&self) -> Option<Devices> {
        self.devices.lock().clone()
    }

    /// Takes over what another table says, whose target answers for the snapshot from now on.
    pub(crate) fn set_table(&self, tenure: &mut Tenure, line: Line, is_running: bool) {
        self.store.resize(|| line.devices.cow.sectors());
        self.set_devices(Some(line.devices));
        let is_shorter = line.end < self.end();
        self.sectors.store(line.end, Release);
        let reports_overflow = line.store_type == StoreType::PersistentOverflow;
        self.reports_overflow
            .store(u32::from(reports_overflow), Release);
        self.room.set_policy(&line.features);
        tenure.owner = Some(Owner {
            id: line.id,
            handle: line.handle,
            is_running,
        });
        // What is waited for may have become another thing. A write may just have been found to
        // need a copy, and then not: what it waits for will not come.
        if self.room.stop_waiting() || is_shorter {
            self.origin.wake_all();
        }
    }

    /// Whether origin writes save old data for it, or would if it were well.
    pub(crate) fn is_active(&self) -> bool {
        self.is_active.load(Acquire) != 0
    }

    /// Whether its exceptions go back to the origin.
    pub(crate) fn is_merging(&self) -> bool {
        self.is_merging.load(Acquire) != 0
    }

    /// From now on its exceptions go back to the origin.
    pub(crate) fn set_merging(&self) {
        self.is_merging.store(1, Release);
    }

    /// The devices that it is on from now on; `None` while no table answers for it.
    pub(crate) fn set_devices(&self, devices: Option<Devices>) {
        let before = core::mem::replace(&mut *self.devices.lock(), devices);
        drop(before);
    }

    /// The chunks that a range of the origin touches.
    pub(crate) fn chunks_of(&self, range: Sectors) -> Chunks {
        self.chunk_size.chunks_of(range)
    }

    /// Where its table line ends on the origin, in sectors.
    pub(crate) fn end(&self) -> u64 {
        self.sectors.load(Acquire)
    }

    /// The chunks of a range of the origin that belong to the snapshot: an origin may be longer.
    pub(crate) fn own_chunks_of(&self, mut range: Sectors) -> Chunks {
        range.end = range.end.min(self.end());
        self.chunks_of(range)
    }

    /// The range of whole chunks around a range of sectors.
    pub(crate) fn whole_chunks(&self, range: Sectors) -> Sectors {
        self.chunk_size.sectors_of(self.chunks_of(range))
    }

    /// The end of what lies in the first chunk of a bio's sectors. One that waits for anything but
    /// a certain exception is cut to that: whatever is decided later, holds for all of it.
    pub(crate) fn end_of_first_chunk(&self, range: Sectors) -> Sector {
        let single = self.whole_chunks(Sectors::new(Sector(range.start), 1));
        Sector(single.end.min(range.end))
    }

    /// The persistent store, if it is one.
    pub(crate) fn persistent(&self) -> Option<&Persistent> {
        self.store.persistent()
    }

    /// What an exception made by a copy is to the flight.
    pub(crate) fn copy_kind(&self) -> Kind {
        match self.store {
            Store::Persistent(_) => Kind::Copied,
            Store::Transient(_) => Kind::CopiedTransient,
        }
    }

    /// A bio of the snapshot goes on, which may have waited. Context: any.
    pub(crate) fn count_wait(&self, io: &Io) {
        if let Io::Waiting(since) = *io {
            self.stats.wait_time.add(since);
        }
    }

    /// A device is being suspended without a flush: gives those bios of the snapshot back to it
    /// that wait. They are of the target that has opened `device`. Context: process.
    pub(crate) fn give_back(&self, device: &Device) {
        self.origin.give_back_of(self.id, device);
    }

    /// One thing more is under way. Context: any.
    pub(crate) fn start_busy(&self) {
        let mut busy = self.busy.lock();
        *busy = busy.saturating_add(1);
    }

    /// One thing less is under way. Context: any.
    pub(crate) fn end_busy(&self) {
        let mut busy = self.busy.lock();
        *busy = busy.saturating_sub(1);
        if *busy == 0 {
            self.idle.notify_all();
        }
    }

    /// Has [`Self::run_merge`] called. Context: any.
    pub(crate) fn queue_merge(self: &Arc<Self>) {
        let _ = self.origin.merge_wq.enqueue::<_, 4>(self.clone());
    }

    /// Sleeps until nothing is under way.
    pub(crate) fn wait_idle(&self) {
        let mut busy = self.busy.lock();
        while *busy != 0 {
            self.idle.wait(&mut busy);
        }
    }

    /// These bios of the snapshot are to be tried again. Context: any.
    pub(crate) fn retry(self: &Arc<Self>, bios: BioList<Io>) {
        if bios.is_empty() {
            return;
        }
        self.ready.lock().append(bios);
        // If it is queued already, it will see them.
        let _ = self.wq.enqueue::<_, 0>(self.clone());
    }

    /// Has [`Self::run_commit`] called. Context: any.
    pub(crate) fn queue_commit(self: &Arc<Self>) {
        let _ = self.wq.enqueue::<_, 1>(self.clone());
    }

    /// Has [`Self::commit_now`] called, in a second at most. Context: any.
    pub(crate) fn start_timer(self: &Arc<Self>) {
        let delay = kernel::time::msecs_to_jiffies(crate::commit::MAX_DELAY_MS);
        let _ = self.wq.enqueue_delayed::<_, 3>(self.clone(), delay);
    }

    /// Has [`Self::end_wave`] called, in a tick. Context: any.
    pub(crate) fn start_wave_timer(self: &Arc<Self>) {
        let _ = self.wq.enqueue_delayed::<_, 7>(self.clone(), 1);
    }

    /// A bio waits until [`Self::unthrottle`]. To be called by the origin.
    pub(crate) fn throttle(&self, bio: Bio<Io>) -> Queued {
        self.throttled.lock().push(bio)
    }

    /// The bios that waited because of too many copies are to be tried again.
    pub(crate) fn unthrottle(self: &Arc<Self>) {
        let bios = self.throttled.lock().take();
        self.retry(bios);
    }

    /// The snapshot can't be kept. Only the first failure counts. Context: any.
    pub(crate) fn fail(self: &Arc<Self>, why: Failure) {
        for from in [Health::Good, Health::Overflowed] {
            let changed = self
                .health
                .cmpxchg(from as u32, Health::Failing as u32, Full);
            if changed.is_ok() {
                dm_err!(
                    "invalidating the snapshot on COW device {}: {}",
                    self.cow_name(),
                    why
                );
                self.queue_invalidate();
                return;
            }
        }
    }

    /// Has an event raised. Context: any.
    pub(crate) fn queue_event(self: &Arc<Self>) {
        // If it is queued already, one event tells of both.
        let _ = self.wq.enqueue::<_, 6>(self.clone());
    }

    /// Has [`Self::look_for_space`] called in a while. Context: any.
    pub(crate) fn start_space_timer(self: &Arc<Self>) {
        let delay = kernel::time::msecs_to_jiffies(SPACE_INTERVAL_MS);
        let _ = self.wq.enqueue_delayed::<_, 5>(self.clone(), delay);
    }

    /// The COW device was full for a write of the snapshot itself: what follows depends on what
    /// userspace knows. Context: any.
    pub(crate) fn overflow(self: &Arc<Self>, why: Failure) {
        if self.reports_overflow.load(Acquire) == 0 || why != Failure::CowFull {
            return self.fail(why);
        }
        let changed = self
            .health
            .cmpxchg(Health::Good as u32, Health::Overflowed as u32, Full);
        if changed.is_ok() {
            dm_err!("snapshot on COW device {} overflowed", self.cow_name());
            self.queue_invalidate();
        }
    }

    /// Has [`Self::invalidate`] called, which counts as busy until it has been.
    fn queue_invalidate(self: &Arc<Self>) {
        self.start_busy();
        if self.wq.enqueue::<_, 2>(self.clone()).is_err() {
            // It is queued already and has not begun, so it will see the health as it is now.
            self.end_busy();
        }
    }

    /// The COW device, to be named in a log line.
    pub(crate) fn cow_name(&self) -> DeviceNumber {
        DeviceNumber(self.cow_number)
    }

    /// The work of [`Self::fail`] and [`Self::overflow`]. Process context.
    fn invalidate(self: &Arc<Self>) {
        // Origin writes wait for this, perhaps those that would free memory.
        let _no_io = NoIo::enter();
        if self.health() == Health::Failing {
            if let (Some(header), Some(devices)) = (&self.invalid_header, self.devices()) {
                let written = load::write_header(&self.client, &devices.cow, header);
                if written.is_err() {
                    dm_err!(
                        "COW device {} could not be marked as invalid",
                        self.cow_name()
                    );
                }
            }
            // Whoever looks at the health under the lock of a slot either sees it changed, or is
            // on a list that is woken below.
            self.health.store(Health::Invalid as u32, Release);
            self.origin.wake_all();
            self.queue_commit();
        }
        if let Some(owner) = &self.tenure.lock().owner {
            owner.handle.raise_event();
        }
        self.end_busy();
    }

    /// An exception has ended, in one way or another: what waited for it may go. Context: any.
    pub(crate) fn end_exception(self: &Arc<Self>, slot: u32, item: ItemId) {
        self.origin.end_item(slot, item);
        self.end_busy();
    }

    /// The data of an exception is on the COW device. For a transient store that is all; a
    /// persistent one writes a record, as soon as that is needed. Context: any.
    pub(crate) fn saved(self: &Arc<Self>, saved: Saved, mut urgency: Urgency) {
        let Some(store) = self.persistent() else {
            return self.end_exception(saved.slot, saved.item);
        };
        let Some(mut slot) = self.origin.slot(saved.slot) else {
            return;
        };
        // The exception may have ended before the timer below is set.
        self.start_busy();
        let range = slot.flight.advance(saved.item, Phase::Volatile);
        if urgency == Urgency::Later && slot.has_origin_waiting(range) {
            urgency = Urgency::Now;
        }
        // Under the lock of the slot: an origin write that meets a volatile exception there has
        // it committed, and then the record must be there.
        let waiting = store.add(saved);
        slot.wake_snapshots(range);
        drop(slot);
        self.record_added(waiting, urgency);
        self.end_busy();
    }

    /// The data of an exception is not on the COW device, and never will be. Context: any.
    pub(crate) fn not_saved(self: &Arc<Self>, slot: u32, item: ItemId, why: Failure) {
        self.fail(why);
        if let Some(store) = self.persistent() {
            store.forget();
        }
        self.end_exception(slot, item);
    }

    /// Leaves the origin: nothing is saved any more, all that is under way comes to its end, and
    /// no trace is left in the slots. Sleeps.
    pub(crate) fn leave(self: &Arc<Self>) {
        self.stop_merge();
        self.set_active(false);
        self.room.stop_waiting();
        // Origin writes that waited for an invalidation need not.
        self.origin.wake_all();
        self.commit_now();
        self.wait_idle();
        // A timer that is still running would keep the snapshot, and later meet no module.
        WorkQueue::flush_delayed(&self.commit_timer);
        WorkQueue::flush_delayed(&self.space_timer);
        WorkQueue::flush_delayed(&self.wave_timer);
        // Who joins meanwhile has to find the same number of them in all slots.
        let snapshots = self.origin.snapshots.lock();
        self.origin.remove_shards(self.id);
        drop(snapshots);
        self.origin.wake_all();
        self.set_devices(None);
    }
}

/// A device's number, as `major:minor`.
pub(crate) struct DeviceNumber(u32);

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The kernel's own dev_t: 12 bits of major, 20 of minor.
        write!(f, "{}:{}", self.0 >> 20, self.0 & 0xf_ffff)
    }
}
