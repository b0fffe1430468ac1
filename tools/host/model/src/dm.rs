// SPDX-License-Identifier: GPL-2.0

//! Bios: those of the module's `dm`, with what the devices of the model do with them.

use crate::live::Live;
use crate::route;
use crate::scenario::Measure;
use crate::slot::Io;
use crate::units::{Sector, Sectors};
use crate::world::{Job, World};
use kernel::prelude::*;
use kernel::sync::Arc;
use std::collections::VecDeque;

pub(crate) mod log;

pub(crate) const MAX_BYTES: usize = 1 << 20;

pub(crate) trait PerBio: Copy + Default + Send + 'static {}

/// What a bio asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    Read,
    Write,
    Discard,
    Other,
}

/// A device beneath.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Device {
    Dev,
    Cow,
}

impl Device {
    pub(crate) fn sectors(&self) -> u64 {
        crate::world::DEV_SECTORS
    }

    pub(crate) fn takes_discards(&self) -> bool {
        false
    }
}

/// A bio.
pub(crate) struct Bio<P: PerBio> {
    data: P,
    op: Op,
    sectors: Sectors,
    /// What is written.
    value: u8,
    /// Where it was sent.
    to: Option<(Device, Sector)>,
    /// The snapshot that it is of; none if it is of the origin.
    live: Option<Arc<Live>>,
    world: Arc<World>,
    has_ended: bool,
}

impl<P: PerBio> Bio<P> {
    /// A new one; `live` is the snapshot that it is of.
    pub(crate) fn new(
        world: &Arc<World>,
        live: Option<&Arc<Live>>,
        op: Op,
        sectors: Sectors,
        value: u8,
    ) -> Self {
        world.bio_begins(live.is_some());
        Self {
            data: P::default(),
            op,
            sectors,
            value,
            to: None,
            live: live.cloned(),
            world: world.clone(),
            has_ended: false,
        }
    }

    pub(crate) fn data_mut(&mut self) -> &mut P {
        &mut self.data
    }

    pub(crate) fn op(&self) -> Op {
        self.op
    }

    pub(crate) fn is_flush(&self) -> bool {
        false
    }

    pub(crate) fn is_fua(&self) -> bool {
        false
    }

    pub(crate) fn may_requeue(&self) -> bool {
        false
    }

    pub(crate) fn requeue(self) {
        unreachable!()
    }

    pub(crate) fn is_of(&self, _device: &Device) -> bool {
        unreachable!()
    }

    pub(crate) fn sectors(&self) -> Sectors {
        self.sectors
    }

    pub(crate) fn value(&self) -> u8 {
        self.value
    }

    pub(crate) fn remap(&mut self, device: &Device, at: Sector) {
        self.to = Some((*device, at));
    }

    pub(crate) fn end(mut self, result: Result) {
        if let Some(live) = self.live.as_ref() {
            assert!(
                result.is_ok() || live.health() != crate::live::Health::Good,
                "a bio of a good snapshot has failed"
            );
        } else {
            assert_eq!(result, Ok(()), "a write to the origin has failed");
        }
        self.has_ended = true;
        self.world.bio_ends(self.live.is_some());
    }
}

impl<P: PerBio> Drop for Bio<P> {
    fn drop(&mut self) {
        assert!(self.has_ended || std::thread::panicking(), "a bio is lost");
    }
}

impl Bio<Io> {
    /// The device does what the bio asks for, in a moment.
    pub(crate) fn submit(self) {
        let world = self.world.clone();
        world.queue(Job::Io(self));
    }

    /// The device does what the bio asks for, and the bio ends.
    pub(crate) fn perform(mut self) {
        let (device, at) = self.to.expect("it was sent somewhere");
        let Some(live) = self.live.clone() else {
            self.world.write_dev(self.sectors, self.value);
            return self.end(Ok(()));
        };
        if let (false, Io::Tracked { slot, item }) = (self.world.has(Measure::Tracking), self.data)
        {
            // Once it was mapped, nobody knows of it any more.
            self.data = Io::Plain;
            live.origin.end_item(slot, item);
        }
        let len = self.sectors.len();
        let result = match (self.op, device) {
            (Op::Read, Device::Dev) => {
                let data = self.world.read_dev(self.sectors);
                self.world.shown(&data);
                Ok(())
            }
            (Op::Read, Device::Cow) => {
                self.world.shown(&live.read_cow(at, len));
                Ok(())
            }
            (_, Device::Cow) => live.write_cow(at, &vec![self.value; len as usize]),
            (_, Device::Dev) => unreachable!("SNAP writes to DEV"),
        };
        match route::end_io(&live, self, result) {
            EndIo::Done(bio) => bio.end(result),
            EndIo::Held(_) => unreachable!(),
        }
    }
}

/// A new bio, which can still be cut.
pub(crate) struct Incoming<'a, P: PerBio>(Bio<P>, &'a mut Option<Sectors>);

impl<'a, P: PerBio> Incoming<'a, P> {
    /// `rest` is what is cut off.
    pub(crate) fn new(bio: Bio<P>, rest: &'a mut Option<Sectors>) -> Self {
        Self(bio, rest)
    }

    pub(crate) fn accept_until(&mut self, end: Sector) {
        assert!(end.0 > self.0.sectors.start);
        if end.0 < self.0.sectors.end {
            *self.1 = Some(Sectors {
                start: end.0,
                end: self.0.sectors.end,
            });
            self.0.sectors.end = end.0;
        }
    }

    pub(crate) fn into_bio(self) -> Bio<P> {
        self.0
    }

    pub(crate) fn bio(&self) -> &Bio<P> {
        &self.0
    }
}

/// A bio waits on a list.
pub(crate) struct Queued(());

/// Bios.
pub(crate) struct BioList<P: PerBio>(VecDeque<Bio<P>>);

impl<P: PerBio> Default for BioList<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: PerBio> BioList<P> {
    pub(crate) const fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn push(&mut self, bio: Bio<P>) -> Queued {
        self.0.push_back(bio);
        Queued(())
    }

    pub(crate) fn pop(&mut self) -> Option<Bio<P>> {
        self.0.pop_front()
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub(crate) fn move_if(&mut self, to: &mut Self, mut wanted: impl FnMut(&Bio<P>) -> bool) {
        for bio in std::mem::take(&mut self.0) {
            let list = if wanted(&bio) { &mut to.0 } else { &mut self.0 };
            list.push_back(bio);
        }
    }
}

/// What became of a bio.
pub(crate) enum Mapped<P: PerBio> {
    Remapped(Bio<P>),
    Queued(Queued),
    Kill(Bio<P>),
    End(Bio<P>, Result),
    GiveBack(Bio<P>),
}

impl Mapped<Io> {
    pub(crate) fn settle(self) {
        match self {
            Mapped::Remapped(bio) => bio.submit(),
            other => other.perform(),
        }
    }

    /// What device-mapper does after `map`. The device answers before this returns, but not
    /// before others have had their turn.
    pub(crate) fn perform(self) {
        match self {
            Mapped::Remapped(bio) => bio.perform(),
            Mapped::Queued(_) => {}
            Mapped::Kill(bio) => bio.end(Err(EIO)),
            Mapped::End(bio, result) => bio.end(result),
            Mapped::GiveBack(_) => unreachable!(),
        }
    }
}

/// What `end_io` did with a bio.
pub(crate) enum EndIo<P: PerBio> {
    Done(Bio<P>),
    Held(Queued),
}

/// Memory is got without I/O.
pub(crate) struct NoIo;

impl NoIo {
    pub(crate) fn enter() -> Self {
        Self
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {}
}
