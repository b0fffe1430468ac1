// SPDX-License-Identifier: GPL-2.0

//! The target `snap-origin-rs`: the live volume.
//!
//! Reads and flushes go straight through. A write goes when what it is going to change has been
//! saved, which `saving.rs` sees to; else it waits in its slot, and is tried again when something
//! there ends. A discard changes data as a write does, and so does whatever else a device takes.

#![deny(unsafe_code)]

use crate::{
    dm::{Args, Bio, Device, Incoming, Mapped, Op, Setup, StatusKind, Target},
    dm_err,
    registry::{MemberState, Origin, OriginRef, Registry},
    saving::{self, Outcome, Writer},
    slot::{Io, Slot},
    table::{self, Message, OriginArgs, ORIGIN_MESSAGES},
    units::Sector,
};
use kernel::{fmt, prelude::*, sync::Arc};

/// A line of a table with the origin target.
pub(crate) struct OriginTarget {
    id: u64,
    origin: OriginRef,
    device: Device,
}

#[vtable]
impl Target for OriginTarget {
    const NAME: &'static CStr = c"snap-origin-rs";
    const VERSION: [u32; 3] = [1, 9, 0];

    type Context = Arc<Registry>;
    type PerBio = Io;
    type Message = Message;

    fn new(registry: &Arc<Registry>, setup: &mut Setup<'_>, args: &Args<'_>) -> Result<Self> {
        let args = OriginArgs::parse(args.iter()).map_err(|e| {
            dm_err!("snap-origin-rs: {}", e);
            setup.set_error(e.short());
            EINVAL
        })?;
        let device = setup.open(args.origin).inspect_err(|errno| {
            let code = errno.to_errno();
            let e = table::ArgError::CannotOpen(table::Device::Origin, args.origin, code);
            dm_err!("snap-origin-rs: {}", e);
            setup.set_error(e.short());
        })?;
        let origin = registry.origin(&device)?;
        let id = registry.new_target_id();
        origin.add_member(id, setup.handle())?;
        setup.pass_flushes();
        setup.pass_discards();
        setup.pass_erasures();
        Ok(Self { id, origin, device })
    }

    #[inline(always)]
    fn map(&self, mut bio: Incoming<'_, Io>) -> Mapped<Io> {
        let is_write = bio.bio().op() != Op::Read && !bio.bio().is_flush();
        let range = bio.bio().sectors();
        // Where no snapshot has joined, large discards go as they are. Should one join just now,
        // it waits until this bio has ended.
        let is_plain = bio.bio().op() == Op::Write;
        let is_guarded = is_write && (is_plain || self.origin.has_snapshots(Sector(range.start)));
        if is_guarded {
            let end = self.origin.spans().end_of(Sector(range.start));
            bio.accept_until(end);
        }
        let mut bio = bio.into_bio();
        bio.remap(&self.device, Sector(range.start));
        if !is_guarded {
            return Mapped::Remapped(bio);
        }
        write(&self.origin, bio)
    }

    fn preresume(&self) -> Result {
        let begun = self.origin.set_member(self.id, MemberState::Shared);
        begun.inspect_err(|_| {
            dm_err!(
                "snap-origin-rs: a snapshot is being merged into {} by another device: remove that \
                 first",
                self.device
            );
        })
    }

    fn presuspend(&self, may_requeue: bool) {
        if may_requeue {
            self.origin.give_back(&self.device);
        }
    }

    fn postsuspend(&self) {
        let _ = self.origin.set_member(self.id, MemberState::Suspended);
    }

    fn read_message(args: &Args<'_>) -> Result<Message> {
        Message::parse(args.iter(), ORIGIN_MESSAGES).map_err(|e| {
            dm_err!("snap-origin-rs: {}", e);
            EINVAL
        })
    }

    fn message(&self, message: Message, out: &mut dyn fmt::Write) -> Result<bool> {
        match message {
            Message::Stats => {
                let _ = self.origin.stats.write(out);
                Ok(true)
            }
            Message::ResetStats => {
                self.origin.stats.reset();
                Ok(false)
            }
            Message::Commit => Err(EINVAL),
        }
    }

    fn status(&self, kind: StatusKind, out: &mut dyn fmt::Write) -> fmt::Result {
        match kind {
            StatusKind::Table => out.write_fmt(kernel::prelude::fmt!("{}", self.device)),
            // As the kernel's origin target: it has nothing to say.
            StatusKind::Info | StatusKind::Ima => Ok(()),
        }
    }

    fn iterate_devices(&self, len: u64, f: &mut dyn FnMut(&Device, u64, u64) -> i32) -> i32 {
        f(&self.device, 0, len)
    }
}

impl Drop for OriginTarget {
    fn drop(&mut self) {
        self.origin.remove_member(self.id);
    }
}

/// A bio of the origin that had to wait is tried again.
pub(crate) fn retry(origin: &Arc<Origin>, bio: Bio<Io>) {
    write(origin, bio).settle();
}

/// A write to the origin that has been sent to the real one. Process context.
pub(crate) fn write(origin: &Arc<Origin>, bio: Bio<Io>) -> Mapped<Io> {
    let range = bio.sectors();
    let wait = |slot: &mut Slot, mut bio: Bio<Io>, is_conflict| {
        if is_conflict && bio.data_mut().wait() {
            origin.stats.conflicts.add(1);
        }
        slot.wait_origin(bio)
    };
    if range.end > bio.device_sectors() {
        // What reaches beyond the end, nobody has a snapshot of. The device would refuse it, unless
        // it has grown since.
        return Mapped::Kill(bio);
    }
    match saving::save(origin, range, Writer::Bio, bio, wait) {
        Outcome::Go(mut bio) => {
            if let Io::Waiting(since) = core::mem::take(bio.data_mut()) {
                origin.stats.wait_time.add(since);
            }
            Mapped::Remapped(bio)
        }
        Outcome::Waits(waits) => waits,
        Outcome::Throttle(bio) => Mapped::Queued(origin.throttle(bio)),
        Outcome::NoSpace(bio) => Mapped::End(bio, Err(ENOSPC)),
    }
}
