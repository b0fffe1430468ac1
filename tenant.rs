// SPDX-License-Identifier: GPL-2.0

//! What a table line of the targets `snapshot-rs` and `snap-merge-rs` has of a snapshot.
//!
//! The devices are opened, the COW device is read, and on the first resume the snapshot joins its
//! origin; or the table takes over a snapshot that is live already: its exceptions, its store and
//! its counters go on as they are, nothing is read again. Of several tables that name the same
//! COW device, one at a time is the owner: the one that was resumed last. It can only be
//! followed when its device is suspended.

#![deny(unsafe_code)]

use crate::{
    dm::{Args, Device, Handle, Setup, StatusKind},
    dm_err,
    exception::{Spare, Table},
    live::{Dealt, Devices, Health, Line, Live, NewLive, Owner},
    registry::{CowRef, Origin, OriginRef, Registry},
    store::{format::Layout, load, transient::Transient, Store},
    table::{self, ArgError, Features, Message, SnapshotArgs, Status, StoreType, TableLine},
    units::{SpanSize, SECTOR_SIZE},
};
use kernel::{fmt, prelude::*, sync::Arc};

/// What a table is to do with its snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Show it.
    Snapshot,
    /// Bring it back into its origin.
    Merge,
}

/// A table line's part in a snapshot.
pub(crate) struct Tenant {
    pub(crate) id: u64,
    pub(crate) live: Arc<Live>,
    pub(crate) origin: OriginRef,
    pub(crate) devices: Devices,
    pub(crate) features: Features,
    _cow_ref: CowRef,
    /// Where the table line ends, in sectors.
    sectors: u64,
    handle: Handle,
    store_type: StoreType,
    role: Role,
}

/// Logs what is wrong with a table line, and tells device-mapper in short.
fn refuse(setup: &mut Setup<'_>, e: ArgError<'_>) -> Error {
    dm_err!("{}", e);
    setup.set_error(e.short());
    match e {
        // The line may be right: there may be no memory, or somebody else has the device.
        ArgError::CannotOpen(_, _, code) => Error::from_errno(code),
        _ => EINVAL,
    }
}

impl Tenant {
    /// Reads a table line. May sleep.
    ///
    /// # Errors
    ///
    /// The line was refused; the reason has been logged, and told to device-mapper.
    pub(crate) fn new(
        registry: &Arc<Registry>,
        setup: &mut Setup<'_>,
        args: &Args<'_>,
        role: Role,
    ) -> Result<Self> {
        let args = SnapshotArgs::parse(args.iter()).map_err(|e| refuse(setup, e))?;
        if role == Role::Merge && !args.store.is_persistent() {
            return Err(refuse(setup, ArgError::MergeTransient));
        }
        let devices = open_devices(setup, &args, role)?;
        let origin = registry.origin(&devices.origin)?;
        let cow_number = devices.cow.number();
        let cow_ref = registry.cow(&devices.cow, &origin).inspect_err(|e| {
            if *e == EBUSY {
                dm_err!(
                    "COW device {} is in use by a snapshot of another origin",
                    devices.cow
                );
                setup.set_error(c"COW device is in use by another snapshot");
            }
        })?;

        let handle = setup.handle();
        let shared = Arc::clone(&origin);
        let mut snapshots = shared.snapshots.lock();
        let known = snapshots.iter().find(|s| s.cow_number == cow_number);
        if role == Role::Merge && Origin::is_merging_other(&snapshots, known.map(|live| live.id)) {
            dm_err!("another snapshot is being merged into {}", devices.origin);
            setup.set_error(c"A snapshot is already merging");
            return Err(EBUSY);
        }
        let live = match known {
            Some(live) => {
                check_takeover(live, &args, role).inspect_err(|_| {
                    setup.set_error(c"The snapshot is in use with other arguments");
                })?;
                live.tenure.lock().lines.reserve(1, GFP_KERNEL)?;
                live.clone()
            }
            None => {
                let live = activate(registry, &shared, setup, &args, &devices);
                let live = live.inspect_err(|_| {
                    setup.set_error(c"The COW device cannot be used");
                })?;
                live.tenure.lock().lines.reserve(1, GFP_KERNEL)?;
                snapshots.push(live.clone(), GFP_KERNEL)?;
                live
            }
        };
        // From here on nothing fails.
        let tenant = Self {
            id: registry.new_target_id(),
            live,
            origin,
            devices,
            _cow_ref: cow_ref,
            sectors: setup.end(),
            handle,
            store_type: args.store,
            features: args.features,
            role,
        };
        tenant.move_in();
        drop(snapshots);
        Ok(tenant)
    }

    /// The device is about to resume with this table. May sleep.
    ///
    /// # Errors
    ///
    /// It can't; the reason has been logged.
    pub(crate) fn preresume(&self) -> Result {
        if self.sectors <= self.live.end() {
            self.take_over()?;
            return self.join().inspect_err(|_| self.set_running(false));
        }
        // The new part is frozen now. What a merge of another snapshot has begun to write there, is
        // part of the image.
        let gate = self.origin.merge_gate.lock();
        let members = self.origin.with_members(|| self.take_over())?;
        drop(gate);
        self.join().inspect_err(|_| self.set_running(false))?;
        self.drain(&members);
        Ok(())
    }

    /// The device of another table can't take over, or can. May sleep.
    pub(crate) fn set_running(&self, is_running: bool) {
        if let Some(owner) = &mut self.live.tenure.lock().owner {
            if owner.id == self.id {
                owner.is_running = is_running;
            }
        }
    }

    /// Writes a status text. `name` and `version` are those of the target.
    ///
    /// # Errors
    ///
    /// The text did not fit.
    pub(crate) fn status(
        &self,
        kind: StatusKind,
        name: &CStr,
        version: [u32; 3],
        mut out: &mut dyn fmt::Write,
    ) -> fmt::Result {
        let line = TableLine {
            origin: self.devices.origin.name(),
            cow: self.devices.cow.name(),
            store: self.store_type,
            chunk_sectors: self.live.chunk_size.sectors(),
            features: self.features,
        };
        let cow = &self.devices.cow;
        self.live.store.resize(|| cow.sectors());
        let usage = self.live.store.usage(self.live.chunk_size, cow.sectors());
        let health = self.live.health();
        // What has left its origin is not guarded any more.
        let has_left = self.live.tenure.lock().has_left;
        let status = Status {
            valid: !self.live.is_lost() && !has_left,
            merge_failed: self.live.has_merge_failed(),
            // A merge is told of by the numbers.
            overflowed: health == Health::Overflowed && !self.live.is_merging(),
            allocated: usage.allocated,
            total: usage.total,
            metadata: usage.metadata,
        };
        match kind {
            StatusKind::Info => status.info(&mut out),
            StatusKind::Table => line.table(&mut out),
            StatusKind::Ima => status.ima(&mut out, name, version, &line),
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is not known; this has been logged.
    pub(crate) fn read_message(args: &Args<'_>) -> Result<Message> {
        Message::parse(args.iter(), table::SNAPSHOT_MESSAGES).map_err(|e| {
            dm_err!("{}", e);
            EINVAL
        })
    }

    /// Answers a message. May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the store has no records, `EIO` if it can't be done; the reason has been
    /// logged.
    pub(crate) fn message(&self, message: Message, out: &mut dyn fmt::Write) -> Result<bool> {
        match message {
            Message::Stats => {
                let _ = self.live.stats.write(out);
                Ok(true)
            }
            Message::ResetStats => {
                self.live.stats.reset();
                Ok(false)
            }
            Message::Commit => self.commit(out),
        }
    }

    /// Makes all records durable, and says how many there are: up to there, the metadata can be
    /// read from the COW device while the snapshot is in use, as long as the generation is the
    /// same afterwards.
    fn commit(&self, out: &mut dyn fmt::Write) -> Result<bool> {
        let Some(store) = self.live.persistent() else {
            dm_err!("message 'commit': a snapshot of store type N has no records");
            return Err(EINVAL);
        };
        self.live.commit_and_wait();
        if self.live.is_lost() {
            dm_err!("message 'commit': the snapshot is invalid");
            return Err(EIO);
        }
        if !self.live.is_active() {
            dm_err!("message 'commit': the snapshot is not in use");
            return Err(EIO);
        }
        let (records, generation) = store.position();
        let size = self.live.chunk_size.sectors();
        let _ = out.write_fmt(fmt!(
            "chunk_size {size} records {records} generation {generation}"
        ));
        Ok(true)
    }

    /// Calls `f` for both devices, with the range that is used, in sectors.
    pub(crate) fn iterate_devices(
        &self,
        len: u64,
        f: &mut dyn FnMut(&Device, u64, u64) -> i32,
    ) -> i32 {
        match f(&self.devices.origin, self.sectors.saturating_sub(len), len) {
            0 => f(&self.devices.cow, 0, self.devices.cow.sectors()),
            stop => stop,
        }
    }

    /// What the table line says.
    fn line(&self) -> Line {
        Line {
            id: self.id,
            handle: self.handle.clone(),
            devices: self.devices.clone(),
            end: self.sectors,
            store_type: self.store_type,
            features: self.features,
        }
    }

    /// There is one target more. The first answers for the snapshot from the start; a later one
    /// takes it over when it is resumed.
    fn move_in(&self) {
        let mut tenure = self.live.tenure.lock();
        // The constructor has made room for it, under the lock of all snapshots.
        let _ = tenure.lines.push_within_capacity(self.line());
        if tenure.owner.is_none() && !tenure.has_left {
            self.live.set_table(&mut tenure, self.line(), false);
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
        // A table of the other role was loaded before a merge began: what the origin holds by now
        // is not what the snapshot showed then.
        if self.role == Role::Snapshot && self.live.is_merging() {
            dm_err!(
                "the snapshot on COW device {} is being merged into its origin",
                self.devices.cow
            );
            return Err(EBUSY);
        }
        let other = tenure.owner.as_ref().filter(|owner| owner.id != self.id);
        // The table before, of the same device, is not in use any more, even where a refused
        // resume has left it as if it were.
        let is_in_use = |owner: &Owner| owner.is_running && !self.handle.replaces(&owner.handle);
        if other.is_some_and(is_in_use) {
            dm_err!(
                "the snapshot on COW device {} is in use: suspend its device first",
                self.devices.cow
            );
            return Err(EBUSY);
        }
        self.live.set_table(&mut tenure, self.line(), true);
        Ok(())
    }

    /// The first time that a device of it is resumed, the snapshot becomes active: from this
    /// moment on it shows what the origin holds now.
    fn join(&self) -> Result {
        if self.live.tenure.lock().waiting.is_none() {
            return Ok(());
        }
        // What a merge writes is part of the image, or comes after it has been frozen.
        let gate = self.origin.merge_gate.lock();
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
        drop(gate);
        self.drain(&members);
        Ok(())
    }

    /// Writes that were mapped before are part of the image, once they have ended. No lock may be
    /// held here that a bio or another device's suspend waits for.
    fn drain(&self, members: &[Handle]) {
        for member in members {
            member.drain(&self.handle);
        }
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

/// Opens and checks the two devices that a table line names.
fn open_devices(setup: &mut Setup<'_>, args: &SnapshotArgs<'_>, role: Role) -> Result<Devices> {
    use table::Device::{Cow, Origin};

    let cannot_open = |device, name, e: Error| ArgError::CannotOpen(device, name, e.to_errno());
    // A read-only device can't be opened for writing, which is the reason to tell.
    let cannot_write = |device, name, e| match e {
        EACCES | EROFS | EPERM => ArgError::ReadOnly(device, name),
        e => cannot_open(device, name, e),
    };
    let cow = setup
        .open_writable(args.cow)
        .map_err(|e| refuse(setup, cannot_write(Cow, args.cow, e)))?;
    let origin = match role {
        Role::Snapshot => setup
            .open_readable(args.origin)
            .map_err(|e| refuse(setup, cannot_open(Origin, args.origin, e)))?,
        Role::Merge => setup
            .open_writable(args.origin)
            .map_err(|e| refuse(setup, cannot_write(Origin, args.origin, e)))?,
    };
    if origin.number() == cow.number() {
        return Err(refuse(setup, ArgError::SameDevice));
    }
    if cow.is_read_only() {
        return Err(refuse(setup, ArgError::ReadOnly(Cow, args.cow)));
    }
    if role == Role::Merge && origin.is_read_only() {
        return Err(refuse(setup, ArgError::ReadOnly(Origin, args.origin)));
    }
    for (device, which) in [(&origin, Origin), (&cow, Cow)] {
        table::check_block_size(args.chunk_size, which, device.logical_block_size())
            .map_err(|e| refuse(setup, e))?;
    }
    Ok(Devices { origin, cow })
}

/// Whether a table line may go on with a snapshot that is live already.
fn check_takeover(live: &Live, args: &SnapshotArgs<'_>, role: Role) -> Result {
    if role == Role::Snapshot && live.is_merging() {
        dm_err!("the snapshot on this COW device is being merged into its origin");
        return Err(EBUSY);
    }
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
    let cow_sectors = cow.sectors();
    // LVM loads the tables of a volume and its snapshots before it resumes any, and a device
    // without a table has no size yet.
    let origin_sectors = devices.origin.sectors().max(setup.end());
    let too_small =
        |size: u64, chunks: u64| ArgError::CowTooSmall(cow_sectors, chunks.saturating_mul(size));
    let (chunk_size, is_valid, invalid_header, store, dealt);
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
        invalid_header = Some(load::header(cow, chunk_size, false)?);
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
        invalid_header = None;
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
        cow_block: u64::from(cow.logical_block_size()) / SECTOR_SIZE,
        waiting: dealt,
        is_valid,
        invalid_header,
        client: client.clone(),
        wq: registry.wq.clone(),
    })
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

impl Drop for Tenant {
    fn drop(&mut self) {
        let mut tenure = self.live.tenure.lock();
        tenure.lines.retain(|line| line.id != self.id);
        let is_owner = tenure
            .owner
            .as_ref()
            .is_some_and(|owner| owner.id == self.id);
        if is_owner {
            tenure.owner = None;
        }
        if tenure.has_left {
            return;
        }
        // device-mapper gives the table before up even where the resume of the next one was
        // refused, which is the device's table then: that one answers for the snapshot now.
        if is_owner {
            let mut lines = tenure.lines.iter();
            let heir = lines.find(|line| line.handle.replaces(&self.handle));
            if let Some(mut heir) = heir.cloned() {
                // It becomes longer, or shorter, only when it is resumed.
                heir.end = self.live.end();
                return self.live.set_table(&mut tenure, heir, false);
            }
        }
        // A snapshot that has not joined yet can still do so with another table. One that has,
        // goes with the table that answers for it.
        let is_last = tenure.lines.is_empty();
        let can_go_on = !is_owner || tenure.waiting.is_some();
        if can_go_on && !is_last {
            if is_owner {
                // They are this table's, which ends only when nobody has them any more. Nothing
                // is done with them before a table joins, and that one brings its own.
                self.live.set_devices(None);
            }
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
