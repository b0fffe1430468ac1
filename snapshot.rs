// SPDX-License-Identifier: GPL-2.0

//! The target `snapshot-rs`: the frozen image, which can be written to.
//!
//! Here a table line becomes a snapshot: the devices are opened, the COW device is read, and on
//! the first resume the snapshot joins its origin; or the table takes over a snapshot that is
//! live already. What happens to its bios is in `route.rs`.

#![deny(unsafe_code)]

use crate::{
    dm::{Args, Bio, Device, EndIo, Handle, Hints, Incoming, Mapped, Setup, StatusKind, Target},
    dm_err,
    exception::{Spare, Table},
    live::{Dealt, Devices, Health, Live, NewLive, Owner, Tenure},
    registry::{Origin, OriginRef, Registry},
    route,
    slot::Io,
    store::{format::Layout, load, transient::Transient, Store},
    table::{self, ArgError, SnapshotArgs, Status, StoreType, TableLine},
    units::{SpanSize, SECTOR_SIZE},
};
use kernel::{fmt, prelude::*, sync::Arc};

/// A line of a table with the snapshot target.
pub(crate) struct SnapshotTarget {
    id: u64,
    live: Arc<Live>,
    origin: OriginRef,
    devices: Devices,
    handle: Handle,
    store_type: StoreType,
    features: table::Features,
}

/// Logs what is wrong with a table line, and tells device-mapper in short.
fn refuse(setup: &mut Setup<'_>, e: ArgError<'_>) -> Error {
    dm_err!("{}", e);
    setup.set_error(e.short());
    EINVAL
}

#[vtable]
impl Target for SnapshotTarget {
    const NAME: &'static CStr = c"snapshot-rs";
    const VERSION: [u32; 3] = [1, 16, 0];

    type Context = Arc<Registry>;
    type PerBio = Io;

    fn new(registry: &Arc<Registry>, setup: &mut Setup<'_>, args: &Args<'_>) -> Result<Self> {
        let args = SnapshotArgs::parse(args.iter()).map_err(|e| refuse(setup, e))?;
        let devices = open_devices(setup, &args)?;
        let origin = registry.origin(&devices.origin)?;
        let cow_number = devices.cow.number();

        if registry.is_cow_elsewhere(cow_number, &origin) {
            dm_err!(
                "COW device {} is in use by a snapshot of another origin",
                devices.cow
            );
            setup.set_error(c"COW device is in use by another snapshot");
            return Err(EBUSY);
        }

        let handle = setup.handle();
        let shared = Arc::clone(&origin);
        let mut snapshots = shared.snapshots.lock();
        let known = snapshots.iter().find(|s| s.cow_number == cow_number);
        let live = match known {
            Some(live) => {
                check_takeover(live, &args).inspect_err(|_| {
                    setup.set_error(c"The snapshot is in use with other arguments");
                })?;
                live.clone()
            }
            None => {
                let live = activate(registry, &shared, setup, &args, &devices);
                let live = live.inspect_err(|_| {
                    setup.set_error(c"The COW device cannot be used");
                })?;
                snapshots.push(live.clone(), GFP_KERNEL)?;
                live
            }
        };
        // From here on nothing fails.
        let target = Self {
            id: registry.new_target_id(),
            live,
            origin,
            devices,
            handle,
            store_type: args.store,
            features: args.features,
        };
        target.move_in();
        drop(snapshots);
        setup.want_flushes();
        Ok(target)
    }

    fn map(&self, bio: Incoming<'_, Io>) -> Mapped<Io> {
        route::map(&self.live, &self.devices, bio)
    }

    fn end_io(&self, bio: Bio<Io>, result: Result) -> EndIo<Io> {
        route::end_io(&self.live, bio, result)
    }

    fn preresume(&self) -> Result {
        self.take_over()?;
        self.join().inspect_err(|_| self.set_running(false))
    }

    fn resume(&self) {
        self.set_running(true);
    }

    fn postsuspend(&self) {
        self.live.commit_and_wait();
        self.set_running(false);
    }

    fn status(&self, kind: StatusKind, mut out: &mut dyn fmt::Write) -> fmt::Result {
        let line = TableLine {
            origin: self.devices.origin.name(),
            cow: self.devices.cow.name(),
            store: self.store_type,
            chunk_sectors: self.live.chunk_size.sectors(),
            features: self.features,
        };
        let usage = self
            .live
            .store
            .usage(self.live.chunk_size, self.devices.cow.sectors());
        let health = self.live.health();
        let status = Status {
            valid: !matches!(health, Health::Failing | Health::Invalid),
            merge_failed: false,
            overflowed: health == Health::Overflowed,
            allocated: usage.allocated,
            total: usage.total,
            metadata: usage.metadata,
        };
        match kind {
            StatusKind::Info => status.info(&mut out),
            StatusKind::Table => line.table(&mut out),
            StatusKind::Ima => status.ima(&mut out, Self::NAME, Self::VERSION, &line),
        }
    }

    fn io_hints(&self, hints: &mut Hints<'_>) {
        // Whole chunks need no copy.
        hints.prefer_io(self.live.chunk_size.bytes());
    }

    fn iterate_devices(&self, len: u64, f: &mut dyn FnMut(&Device, u64, u64) -> i32) -> i32 {
        match f(&self.devices.origin, 0, len) {
            0 => f(&self.devices.cow, 0, self.devices.cow.sectors()),
            stop => stop,
        }
    }
}

/// Opens and checks the two devices that a table line names.
fn open_devices(setup: &mut Setup<'_>, args: &SnapshotArgs<'_>) -> Result<Devices> {
    use table::Device::{Cow, Origin};

    let cannot_open = |device, name, e: Error| ArgError::CannotOpen(device, name, e.to_errno());
    let origin = setup
        .open_readable(args.origin)
        .map_err(|e| refuse(setup, cannot_open(Origin, args.origin, e)))?;
    let cow = setup.open_writable(args.cow).map_err(|e| match e {
        // A read-only device can't be opened for writing, which is the reason to tell.
        EACCES | EROFS | EPERM => refuse(setup, ArgError::CowReadOnly(args.cow)),
        e => refuse(setup, cannot_open(Cow, args.cow, e)),
    })?;
    if origin.number() == cow.number() {
        return Err(refuse(setup, ArgError::SameDevice));
    }
    if cow.is_read_only() {
        return Err(refuse(setup, ArgError::CowReadOnly(args.cow)));
    }
    for (device, which) in [(&origin, Origin), (&cow, Cow)] {
        table::check_block_size(args.chunk_size, which, device.logical_block_size())
            .map_err(|e| refuse(setup, e))?;
    }
    Ok(Devices { origin, cow })
}

/// Whether a table line may go on with a snapshot that is live already.
fn check_takeover(live: &Live, args: &SnapshotArgs<'_>) -> Result {
    if live.tenure.lock().has_left {
        dm_err!("the snapshot on this COW device is just being removed");
        return Err(EBUSY);
    }
    if args.store.is_persistent() != live.persistent().is_some() {
        dm_err!(
            "store type {} differs from that of the live snapshot on the same COW device",
            args.store.name()
        );
        return Err(EINVAL);
    }
    // A persistent store's chunk size is in its header, whatever the table line says.
    if !args.store.is_persistent() && args.chunk_size != live.chunk_size {
        dm_err!(
            "chunk size {} differs from {}, that of the live snapshot on the same COW device",
            args.chunk_size.sectors(),
            live.chunk_size.sectors()
        );
        return Err(EINVAL);
    }
    Ok(())
}

/// Makes a live snapshot from what is on a COW device.
fn activate(
    registry: &Arc<Registry>,
    origin: &Arc<Origin>,
    setup: &mut Setup<'_>,
    args: &SnapshotArgs<'_>,
    devices: &Devices,
) -> Result<Arc<Live>> {
    let (client, cow) = (&registry.client, &devices.cow);
    let (cow_sectors, origin_sectors) = (cow.sectors(), devices.origin.sectors());
    let too_small =
        |size: u64, chunks: u64| ArgError::CowTooSmall(cow_sectors, chunks.saturating_mul(size));
    let (chunk_size, is_valid, store, dealt);
    if args.store.is_persistent() {
        if cow_sectors < u64::from(cow.logical_block_size()) / SECTOR_SIZE {
            return Err(refuse(setup, too_small(args.chunk_size.sectors(), 3)));
        }
        let found = load::read_header(client, cow, args.chunk_size)?;
        chunk_size = found.chunk_size;
        is_valid = found.is_valid;
        for (device, which) in [
            (&devices.origin, table::Device::Origin),
            (cow, table::Device::Cow),
        ] {
            table::check_block_size(chunk_size, which, device.logical_block_size())
                .map_err(|e| refuse(setup, e))?;
        }
        let layout = Layout::new(chunk_size, cow_sectors, origin_sectors).ok_or(EINVAL)?;
        if !layout.is_large_enough() {
            return Err(refuse(setup, too_small(chunk_size.sectors(), 3)));
        }
        let spans = origin.spans().with_chunks(chunk_size);
        let loaded = load::load(client, cow, &found, &layout, origin_sectors, spans)?;
        store = Store::Persistent(loaded.store);
        dealt = Dealt {
            tables: loaded.tables,
            spans,
        };
    } else {
        chunk_size = args.chunk_size;
        is_valid = true;
        if cow_sectors < chunk_size.sectors() {
            return Err(refuse(setup, too_small(chunk_size.sectors(), 1)));
        }
        let transient = Transient::new(chunk_size, cow_sectors)?;
        store = Store::Transient(KBox::pin_init(transient, GFP_KERNEL)?);
        dealt = Dealt {
            tables: load::empty_tables()?,
            spans: origin.spans().with_chunks(chunk_size),
        };
    }
    Live::new(NewLive {
        origin: origin.clone(),
        chunk_size,
        store,
        cow_number: cow.number(),
        waiting: dealt,
        is_valid,
        client: client.clone(),
        wq: registry.wq.clone(),
    })
}

impl SnapshotTarget {
    /// There is one target more. The first answers for the snapshot from the start; a later one
    /// takes it over when it is resumed.
    fn move_in(&self) {
        let mut tenure = self.live.tenure.lock();
        tenure.targets = tenure.targets.saturating_add(1);
        if tenure.owner.is_none() {
            self.own(&mut tenure, false);
        }
    }

    /// This target answers for the snapshot from now on.
    fn own(&self, tenure: &mut Tenure, is_running: bool) {
        tenure.owner = Some(Owner {
            id: self.id,
            handle: self.handle.clone(),
            is_running,
        });
        let reports_overflow = self.store_type == StoreType::PersistentOverflow;
        self.live.set_table(self.devices.clone(), reports_overflow);
    }

    fn set_running(&self, is_running: bool) {
        if let Some(owner) = &mut self.live.tenure.lock().owner {
            if owner.id == self.id {
                owner.is_running = is_running;
            }
        }
    }

    /// The device is about to resume with this target: it answers for the snapshot from now on.
    fn take_over(&self) -> Result {
        let mut tenure = self.live.tenure.lock();
        if tenure.has_left {
            dm_err!(
                "the snapshot on COW device {} has been removed since this table was loaded: load \
                 it again",
                self.devices.cow
            );
            return Err(ENODEV);
        }
        let other = tenure.owner.as_ref().filter(|owner| owner.id != self.id);
        if other.is_some_and(|owner| owner.is_running) {
            dm_err!(
                "the snapshot on COW device {} is in use: suspend its device first",
                self.devices.cow
            );
            return Err(EBUSY);
        }
        self.own(&mut tenure, true);
        Ok(())
    }

    /// The first time that a device of it is resumed, the snapshot becomes active: from this
    /// moment on it shows what the origin holds now.
    fn join(&self) -> Result {
        let snapshots = self.origin.snapshots.lock();
        let Some(mut dealt) = self.live.tenure.lock().waiting.take() else {
            return Ok(());
        };
        let members = self.try_join(&mut dealt);
        let members = members.inspect_err(|e| {
            let why = match *e {
                EBUSY => "its chunks are larger than the spans that are in use",
                _ => "there is no memory",
            };
            dm_err!(
                "the snapshot on COW device {} cannot join its origin: {}",
                self.devices.cow,
                why
            );
        });
        let members = match members {
            Ok(members) => members,
            Err(e) => {
                // Later it may be possible.
                self.live.tenure.lock().waiting = Some(dealt);
                return Err(e);
            }
        };
        drop(snapshots);
        // Writes that were mapped before are part of the image, once they have ended. No lock
        // may be held here that a bio or another device's suspend waits for.
        for member in &members {
            member.drain(&self.handle);
        }
        Ok(())
    }

    /// Puts the exceptions into the slots and makes the snapshot active. Answers the origin
    /// targets, whose bios have to be waited for. If it fails, nothing has changed.
    fn try_join(&self, dealt: &mut Dealt) -> Result<KVec<Handle>> {
        let spans = self.origin.spans().with_chunks(self.live.chunk_size);
        if dealt.spans != spans {
            dealt.tables = deal(dealt, spans, &self.live)?;
            dealt.spans = spans;
        }
        self.origin.join(&self.live, &mut dealt.tables, spans)
    }
}

/// Deals exceptions out anew, if the spans have become larger since.
fn deal(dealt: &Dealt, spans: SpanSize, live: &Live) -> Result<KVec<Table>> {
    let mut tables = load::empty_tables()?;
    let mut spare = Spare::new();
    for run in dealt.tables.iter().flat_map(Table::iter) {
        for i in 0..run.len {
            let old = run.old.plus(i);
            let first = live.chunk_size.first_sector(old);
            let slot = spans.slot_of(first) as usize;
            let table = tables.get_mut(slot).ok_or(EINVAL)?;
            load::insert(table, old, run.new.plus(i), &mut spare).map_err(|_| ENOMEM)?;
        }
    }
    Ok(tables)
}

impl Drop for SnapshotTarget {
    fn drop(&mut self) {
        let mut tenure = self.live.tenure.lock();
        tenure.targets = tenure.targets.saturating_sub(1);
        let is_owner = tenure
            .owner
            .as_ref()
            .is_some_and(|owner| owner.id == self.id);
        if is_owner {
            tenure.owner = None;
        }
        // A snapshot that has not joined yet can still do so with another table. One that has,
        // goes with the table that answers for it.
        let is_last = tenure.targets == 0;
        if tenure.has_left || !(is_last || is_owner && tenure.waiting.is_none()) {
            return;
        }
        tenure.has_left = true;
        drop(tenure);
        // As long as anything is under way, nobody may read the COW device anew.
        self.live.leave();
        let mut snapshots = self.origin.snapshots.lock();
        let id = self.live.id;
        snapshots.retain(|live| live.id != id);
    }
}
