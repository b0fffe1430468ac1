// SPDX-License-Identifier: GPL-2.0

//! The target `snap-merge-rs`: the origin, on its way back to what a snapshot shows.
//!
//! It stands in the place of the origin. Chunks that are still to be merged are read and written
//! on the COW device, all others on the real origin, where a write is one like any other: what
//! it changes has been saved for the other snapshots before. A write to a chunk that is just
//! being merged waits until that is done. How chunks are merged is in `merger.rs`.

#![deny(unsafe_code)]

use crate::{
    dm::{Args, Bio, Device, EndIo, Incoming, Mapped, Op, Setup, StatusKind, Target},
    dm_err,
    live::{Devices, Live},
    origin,
    pending::Way,
    registry::{MemberState, Origin, Registry, SlotGuard},
    route,
    slot::{Io, Slot},
    table::Message,
    tenant::{Role, Tenant},
    units::{Sector, Sectors},
};
use kernel::{fmt, prelude::*, sync::Arc};

/// A line of a table with the merge target.
pub(crate) struct MergeTarget(Tenant);

#[vtable]
impl Target for MergeTarget {
    const NAME: &'static CStr = c"snap-merge-rs";
    const VERSION: [u32; 3] = [1, 5, 0];

    type Context = Arc<Registry>;
    type PerBio = Io;
    type Message = Message;

    fn new(registry: &Arc<Registry>, setup: &mut Setup<'_>, args: &Args<'_>) -> Result<Self> {
        let tenant = Tenant::new(registry, setup, args, Role::Merge)?;
        tenant.origin.add_member(tenant.id, setup.handle())?;
        setup.want_two_flushes();
        // None goes to the COW device, so it does not matter whether that takes them.
        if tenant.devices.origin.takes_discards() {
            setup.want_discards();
        }
        Ok(Self(tenant))
    }

    fn map(&self, bio: Incoming<'_, Io>) -> Mapped<Io> {
        map(&self.0.live, &self.0.devices, bio)
    }

    fn end_io(&self, mut bio: Bio<Io>, _result: Result) -> EndIo<Io> {
        if let Io::Tracked { slot, item } = core::mem::take(bio.data_mut()) {
            self.0.origin.end_item(slot, item);
        }
        EndIo::Done(bio)
    }

    fn preresume(&self) -> Result {
        let alone = self.0.origin.set_member(self.0.id, MemberState::Alone);
        alone.inspect_err(|_| {
            dm_err!(
                "snapshot cannot be merged into {} while the origin is in use as another device: \
                 load this table there, or remove that device",
                self.0.devices.origin
            );
        })?;
        // Where it is refused, nothing must have changed: it comes before this table takes over.
        let begun = self.is_only_merge().and_then(|()| self.0.preresume());
        begun.inspect_err(|_| self.stand_down())?;
        self.begin();
        Ok(())
    }

    fn resume(&self) {
        self.0.set_running(true);
        self.0.live.start_merge();
    }

    fn presuspend(&self, may_requeue: bool) {
        // Bios wait for the batch under way, and the device's suspend for them.
        self.0.live.stop_merge();
        if may_requeue {
            self.0.origin.give_back(&self.0.devices.origin);
            self.0.live.give_back(&self.0.devices.origin);
        }
    }

    fn presuspend_undo(&self) {
        self.0.live.start_merge();
    }

    fn postsuspend(&self) {
        self.0.live.stop_merge();
        self.stand_down();
    }

    fn status(&self, kind: StatusKind, out: &mut dyn fmt::Write) -> fmt::Result {
        self.0.status(kind, Self::NAME, Self::VERSION, out)
    }

    fn read_message(args: &Args<'_>) -> Result<Message> {
        Tenant::read_message(args)
    }

    fn message(&self, message: Message, out: &mut dyn fmt::Write) -> Result<bool> {
        self.0.message(message, out)
    }

    fn iterate_devices(&self, len: u64, f: &mut dyn FnMut(&Device, u64, u64) -> i32) -> i32 {
        self.0.iterate_devices(len, f)
    }
}

impl MergeTarget {
    /// Fails if another snapshot is being merged. None can begin to be, as this device is the only
    /// one that writes to the origin.
    fn is_only_merge(&self) -> Result {
        let snapshots = self.0.origin.snapshots.lock();
        let id = Some(self.0.live.id);
        if Origin::is_merging_other(&snapshots, id) {
            dm_err!(
                "another snapshot is being merged into {}",
                self.0.devices.origin
            );
            return Err(EBUSY);
        }
        Ok(())
    }

    /// The snapshot stops guarding its origin. All that is under way for it comes to its end.
    fn begin(&self) {
        self.0.live.set_merging();
        if self.0.live.room.stop_waiting() {
            self.0.origin.wake_all();
        }
        // Neither the snapshot nor the origin is in use while this device is suspended, so that
        // nothing new begins.
        self.0.live.commit_and_wait();
        self.0.live.wait_idle();
    }

    /// Others may write to the origin, or take over.
    fn stand_down(&self) {
        self.0.set_running(false);
        let _ = self.0.origin.set_member(self.0.id, MemberState::Suspended);
    }
}

impl Drop for MergeTarget {
    fn drop(&mut self) {
        self.0.origin.remove_member(self.0.id);
    }
}

/// What becomes of a bio that is looked at under the lock of its slot.
enum Step {
    /// It goes to the real origin; what a write changes has to be saved first.
    Origin,
    /// It goes to that sector of the COW device.
    Cow(Sector, Io),
    /// It waits in the slot.
    Wait,
    /// There is nothing to be done for it.
    Nothing,
    /// It fails.
    Fail,
}

/// A new bio.
fn map(live: &Arc<Live>, devices: &Devices, mut incoming: Incoming<'_, Io>) -> Mapped<Io> {
    let bio = incoming.bio();
    if bio.is_flush() {
        // device-mapper sends each flush twice, since it is about two devices.
        let is_first = bio.number() == 0;
        let device = if is_first {
            &devices.origin
        } else {
            &devices.cow
        };
        let mut bio = incoming.into_bio();
        // A snapshot that was lost before its merge began has nothing that could count.
        if !is_first && live.is_lost() {
            return Mapped::End(bio, Ok(()));
        }
        bio.remap(device, Sector(0));
        return Mapped::Remapped(bio);
    }
    let (mut range, op) = (bio.sectors(), bio.op());
    range.end = range
        .end
        .min(live.origin.spans().end_of(Sector(range.start)).0);
    let Some((index, mut slot)) = live.origin.lock_slot(Sector(range.start)) else {
        return Mapped::Kill(incoming.into_bio());
    };
    let (step, end) = decide(&mut slot, index, live, range, op);
    incoming.accept_until(end);
    go(live, devices, incoming.into_bio(), slot, step)
}

/// A bio that had to wait is tried again. It can't be cut any more.
pub(crate) fn retry(live: &Arc<Live>, bio: Bio<Io>) {
    let (range, op) = (bio.sectors(), bio.op());
    let Some(devices) = live.devices() else {
        return bio.end(Err(EIO));
    };
    let Some((index, mut slot)) = live.origin.lock_slot(Sector(range.start)) else {
        return bio.end(Err(EIO));
    };
    let (mut step, end) = decide(&mut slot, index, live, range, op);
    if end.0 < range.end && !matches!(step, Step::Wait) {
        // It was cut to chunks that are merged together, or to one. So this can't be; if it is,
        // nothing may be sent to a wrong place.
        dm_err!("internal error: a bio of a merge can't be sent to one place");
        if let Step::Cow(_, Io::Tracked { item, .. }) = step {
            slot.flight.end(item);
        }
        step = Step::Fail;
    }
    go(live, &devices, bio, slot, step).settle();
}

/// Decides about a bio, and up to which sector the decision holds.
fn decide(slot: &mut Slot, index: u32, live: &Arc<Live>, range: Sectors, op: Op) -> (Step, Sector) {
    let all = Sector(range.end);
    if live.is_lost() {
        return (Step::Origin, all);
    }
    let Some(route) = slot.route(live.id, range, op != Op::Read) else {
        return (Step::Fail, all);
    };
    let step = match (route.way, op) {
        (Way::Wait, _) => Step::Wait,
        (Way::Fail, _) => Step::Fail,
        (Way::Origin, _) => Step::Origin,
        (Way::Cow, Op::Discard | Op::Other) => Step::Nothing,
        // Not reached: what is in flight is in the table.
        (Way::Cow, _) if route.is_hole => Step::Fail,
        (Way::Cow, Op::Read | Op::Write) => {
            let at = route::place(live, range, &route);
            if op == Op::Read {
                return (Step::Cow(at, Io::Plain), route.end);
            }
            let part = Sectors {
                start: range.start,
                end: route.end.0,
            };
            match slot
                .flight
                .start_merge_write(live.id, live.whole_chunks(part))
            {
                Ok(item) => Step::Cow(at, Io::Tracked { slot: index, item }),
                Err(_) => {
                    slot.starve();
                    return (Step::Wait, live.end_of_first_chunk(range));
                }
            }
        }
    };
    (step, route.end)
}

/// Does what was decided. Whoever waits in the slot has to be there before the lock is dropped.
fn go(
    live: &Arc<Live>,
    devices: &Devices,
    mut bio: Bio<Io>,
    mut slot: SlotGuard<'_>,
    step: Step,
) -> Mapped<Io> {
    match step {
        Step::Wait => slot.wait_snapshot(live.id, bio),
        Step::Nothing => Mapped::End(bio, Ok(())),
        Step::Fail => Mapped::Kill(bio),
        Step::Cow(at, io) => {
            drop(slot);
            live.count_wait(bio.data_mut());
            route::send(bio, &devices.cow, at, io)
        }
        Step::Origin => {
            drop(slot);
            let at = bio.sectors().start;
            live.count_wait(bio.data_mut());
            *bio.data_mut() = Io::Plain;
            bio.remap(&devices.origin, Sector(at));
            if bio.op() == Op::Read {
                return Mapped::Remapped(bio);
            }
            // No exception comes to be while the snapshot is merged, so this stays right.
            origin::write(&live.origin, bio)
        }
    }
}
