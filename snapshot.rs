// SPDX-License-Identifier: GPL-2.0

//! The target `snapshot-rs`: the frozen image, which can be written to.
//!
//! How a table line becomes a snapshot is in `tenant.rs`, what happens to its bios in `route.rs`.

#![deny(unsafe_code)]

use crate::{
    dm::{Args, Bio, Device, EndIo, Hints, Incoming, Mapped, Setup, StatusKind, Target},
    registry::Registry,
    route,
    slot::Io,
    table::Message,
    tenant::{Role, Tenant},
    units::SpanSize,
};
use kernel::{fmt, prelude::*, sync::Arc};

/// A line of a table with the snapshot target.
pub(crate) struct SnapshotTarget(Tenant);

#[vtable]
impl Target for SnapshotTarget {
    const NAME: &'static CStr = c"snapshot-rs";
    const VERSION: [u32; 3] = [1, 16, 0];

    type Context = Arc<Registry>;
    type PerBio = Io;
    type Message = Message;

    fn new(registry: &Arc<Registry>, setup: &mut Setup<'_>, args: &Args<'_>) -> Result<Self> {
        let tenant = Tenant::new(registry, setup, args, Role::Snapshot)?;
        setup.want_flushes();
        if tenant.features.discard_zeroes_cow {
            setup.want_discards();
        }
        Ok(Self(tenant))
    }

    #[inline(always)]
    fn map(&self, bio: Incoming<'_, Io>) -> Mapped<Io> {
        route::map(&self.0.live, &self.0.devices, &self.0.features, bio)
    }

    #[inline(always)]
    fn end_io(&self, bio: Bio<Io>, result: Result) -> EndIo<Io> {
        route::end_io(&self.0.live, bio, result)
    }

    fn preresume(&self) -> Result {
        self.0.preresume()
    }

    fn resume(&self) {
        self.0.set_running(true);
    }

    fn presuspend(&self, may_requeue: bool) {
        if may_requeue {
            self.0.live.give_back(&self.0.devices.cow);
        }
    }

    fn postsuspend(&self) {
        self.0.live.commit_and_wait();
        self.0.set_running(false);
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

    fn io_hints(&self, hints: &mut Hints<'_>) {
        // Whole chunks need no copy.
        let chunk = self.0.live.chunk_size.bytes();
        hints.prefer_io(chunk);
        if self.0.features.discard_zeroes_cow {
            hints.take_discards(chunk, 1 << SpanSize::MIN.shift());
        }
    }

    fn iterate_devices(&self, len: u64, f: &mut dyn FnMut(&Device, u64, u64) -> i32) -> i32 {
        self.0.iterate_devices(len, f)
    }
}
