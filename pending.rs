// SPDX-License-Identifier: GPL-2.0

//! What is in flight on a piece of the origin, and who may go.
//!
//! A [`Flight`] holds, for the spans that share a lock, two kinds of things under way:
//!
//! - a *read* of a snapshot that was sent to the real origin, since the data has not changed
//!   there;
//! - an *exception* that is not complete: its place on the COW device is allotted, but the data
//!   is not there yet, or the record of it is not on stable media.
//!
//! From these two follows who may go (rules R1 and R2 of the design):
//!
//! ```text
//!                      read    exception, by phase
//!                      (any)   Reading   Filling          Volatile
//!  origin write        waits   waits     waits (*)        waits
//!  snapshot read       goes    origin    origin (*)       COW
//!  snapshot write      goes    waits     waits            COW
//!
//!  (*) Of a transient store, the copy of old data lets the origin write go as soon as the data
//!      is in memory. From then on the origin may change, so snapshot reads wait for the COW.
//! ```
//!
//! A snapshot that is merged into its origin has no reads and exceptions in flight, but:
//!
//! - *writes* to chunks that are still on the COW device, for which a batch waits that wants to
//!   merge them;
//! - *merges*: chunks of the batch that is just being merged. They are still read from the COW
//!   device, and writes to them wait. If nobody can tell any more which device they will be read
//!   from after a restart, they are *stranded*, and writes to them fail.
//!
//! The module knows nothing of bios or locks: its caller holds the lock of the spans, asks, and
//! does what it is told.

#![deny(unsafe_code)]

use crate::units::{Chunk, Sectors};
use kernel::prelude::*;

/// A snapshot, as the flight knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SnapId(pub(crate) u32);

/// Something in flight, until it is ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ItemId(u32);

/// An exception whose data is, or soon will be, on the COW device.
#[derive(Clone, Copy)]
pub(crate) struct Saved {
    /// The chunk of the origin.
    pub(crate) old: Chunk,
    /// The chunk of the COW device.
    pub(crate) new: Chunk,
    /// The number of chunks.
    pub(crate) len: u64,
    /// Where it is in flight.
    pub(crate) slot: u32,
    /// As what it is in flight there.
    pub(crate) item: ItemId,
}

/// How far an exception has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// The old data is being read from the origin.
    Reading,
    /// Data is being written to the COW device.
    Filling,
    /// The data is on the COW device, but no durable record says so.
    Volatile,
}

/// Where the data of an exception comes from, and what makes the exception last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// The old data, copied; a record makes it durable.
    Copied,
    /// The old data, copied; the store is transient.
    CopiedTransient,
    /// What the snapshot itself writes, whole chunks of it.
    Written,
}

/// There is no room for one more, and no memory to make some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Full;

/// An exception or a merge in flight, as a bio of its snapshot meets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Busy {
    /// The sectors of the origin that it is for.
    pub(crate) range: Sectors,
    /// Where a read of them goes.
    pub(crate) read: Way,
    /// Where a write to them goes.
    pub(crate) write: Way,
}

/// Where a bio of a snapshot goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// To the real origin; a read that has to be tracked.
    Origin,
    /// To the place that the exception table names.
    Cow,
    /// Nowhere, until the exception has come further.
    Wait,
    /// Nowhere at all.
    Fail,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Read,
    Exception(Kind, Phase),
    MergeWrite,
    Merge { is_stranded: bool },
}

#[derive(Clone, Copy, Debug)]
struct Item {
    snap: SnapId,
    range: Sectors,
    state: State,
}

impl Item {
    /// Whether an origin write to its sectors has to wait for it.
    fn holds_origin(&self) -> bool {
        match self.state {
            State::Read => true,
            State::Exception(kind, phase) => {
                !matches!((kind, phase), (Kind::CopiedTransient, Phase::Filling))
            }
            // What is merged is on the COW device, and its own merge is all that writes there.
            State::MergeWrite | State::Merge { .. } => false,
        }
    }
}

/// All that is in flight on the spans of one lock.
pub(crate) struct Flight {
    items: KVec<Option<Item>>,
    live: usize,
    /// How many places there are from the beginning.
    room: usize,
}

impl Flight {
    /// A flight with room for `room` items; more is taken from free memory when needed.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. May sleep.
    pub(crate) fn new(room: usize) -> Result<Self> {
        Ok(Self {
            items: KVec::with_capacity(room, GFP_KERNEL)?,
            live: 0,
            room,
        })
    }

    /// Whether nothing is in flight.
    #[allow(dead_code)] // The host tests look at it.
    pub(crate) fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// A read of a snapshot goes to the origin.
    ///
    /// # Errors
    ///
    /// [`Full`]: the read has to wait until something else ends, which there is.
    pub(crate) fn start_read(&mut self, snap: SnapId, range: Sectors) -> Result<ItemId, Full> {
        self.start(Item {
            snap,
            range,
            state: State::Read,
        })
    }

    /// An exception is being made: copied ones begin by reading, written ones by filling.
    ///
    /// # Errors
    ///
    /// As for [`Self::start_read`].
    pub(crate) fn start_exception(
        &mut self,
        snap: SnapId,
        range: Sectors,
        kind: Kind,
    ) -> Result<ItemId, Full> {
        let phase = match kind {
            Kind::Copied | Kind::CopiedTransient => Phase::Reading,
            Kind::Written => Phase::Filling,
        };
        self.start(Item {
            snap,
            range,
            state: State::Exception(kind, phase),
        })
    }

    /// A write of a snapshot that is being merged goes to the COW device.
    ///
    /// # Errors
    ///
    /// As for [`Self::start_read`].
    pub(crate) fn start_merge_write(
        &mut self,
        snap: SnapId,
        range: Sectors,
    ) -> Result<ItemId, Full> {
        self.start(Item {
            snap,
            range,
            state: State::MergeWrite,
        })
    }

    /// Chunks are about to be merged: from now on writes to them wait.
    ///
    /// # Errors
    ///
    /// [`Full`]: it can be tried again when something else has ended.
    pub(crate) fn start_merge(&mut self, snap: SnapId, range: Sectors) -> Result<ItemId, Full> {
        let id = self.start(Item {
            snap,
            range,
            state: State::Merge { is_stranded: false },
        })?;
        // Merges may never end. So that what finds no room can wait for something that does, they
        // leave room for one such thing.
        let items = self.items.iter().flatten();
        let merges = items.filter(|item| matches!(item.state, State::Merge { .. }));
        let is_full = merges.count() >= self.items.capacity();
        if is_full && self.items.reserve(1, GFP_NOWAIT).is_err() {
            self.end(id);
            return Err(Full);
        }
        Ok(id)
    }

    /// The chunks have been merged, but the record may or may not say so: from now on writes to
    /// them fail. Answers the sectors for which somebody may be able to go now.
    pub(crate) fn strand(&mut self, id: ItemId) -> Sectors {
        let item = self.items.get_mut(id.0 as usize);
        match item.and_then(Option::as_mut) {
            Some(Item {
                range,
                state: State::Merge { is_stranded },
                ..
            }) => {
                *is_stranded = true;
                *range
            }
            _ => Sectors::default(),
        }
    }

    /// Whether a write to the COW device is under way that a merge of these sectors waits for.
    pub(crate) fn has_merge_write(&self, range: Sectors) -> bool {
        self.overlapping(range)
            .any(|item| matches!(item.state, State::MergeWrite))
    }

    #[inline]
    fn start(&mut self, item: Item) -> Result<ItemId, Full> {
        // Where all places are taken, the search is as long as the list, which is short.
        let mut places = self.items.iter_mut().enumerate();
        let index = match places.find(|(_, place)| place.is_none()) {
            Some((index, place)) => {
                *place = Some(item);
                index
            }
            None => {
                // Called under a spinlock. Where this fails there are items in flight that end,
                // since there was room for some from the beginning, and merges leave some.
                let index = self.items.len();
                self.items.push(Some(item), GFP_NOWAIT).map_err(|_| Full)?;
                index
            }
        };
        self.live = self.live.saturating_add(1);
        Ok(ItemId(index as u32))
    }

    /// Something has ended: the read has returned, the exception is complete or was given up.
    ///
    /// Answers the sectors for which somebody may be able to go now.
    pub(crate) fn end(&mut self, id: ItemId) -> Sectors {
        let place = self.items.get_mut(id.0 as usize);
        match place.and_then(Option::take) {
            Some(item) => {
                self.live = self.live.saturating_sub(1);
                if self.live == 0 {
                    // A merge has many in flight at a time, all else has few.
                    self.items.truncate(self.room);
                }
                item.range
            }
            None => Sectors::default(),
        }
    }

    /// A snapshot is gone, and with it what nobody will end any more.
    pub(crate) fn forget(&mut self, snap: SnapId) {
        for place in &mut self.items {
            if place.is_some_and(|item| item.snap == snap) {
                *place = None;
                self.live = self.live.saturating_sub(1);
            }
        }
    }

    /// An exception has come further.
    ///
    /// Answers the sectors for which somebody may be able to go now.
    pub(crate) fn advance(&mut self, id: ItemId, phase: Phase) -> Sectors {
        let item = self.items.get_mut(id.0 as usize);
        match item.and_then(Option::as_mut) {
            Some(Item {
                range,
                state: State::Exception(_, now),
                ..
            }) => {
                *now = phase;
                *range
            }
            _ => Sectors::default(),
        }
    }

    /// Whether a write to the origin may go, as far as this flight is concerned.
    pub(crate) fn origin_may_write(&self, range: Sectors) -> bool {
        self.live == 0 || !self.overlapping(range).any(Item::holds_origin)
    }

    /// The snapshots whose records hold back an origin write to these sectors, by nothing but
    /// being volatile: they need to be told to commit.
    pub(crate) fn volatile(&self, range: Sectors) -> impl Iterator<Item = SnapId> + '_ {
        self.overlapping(range).filter_map(|item| {
            let is_volatile = matches!(item.state, State::Exception(_, Phase::Volatile));
            is_volatile.then_some(item.snap)
        })
    }

    /// The first exception in flight of this snapshot that touches the range, or the first merge.
    #[inline]
    pub(crate) fn first_of(&self, snap: SnapId, range: Sectors) -> Option<Busy> {
        if self.live == 0 {
            return None;
        }
        self.find_first_of(snap, range)
    }

    fn find_first_of(&self, snap: SnapId, range: Sectors) -> Option<Busy> {
        let mut first: Option<Busy> = None;
        for item in self.overlapping(range) {
            let is_earlier = first.is_none_or(|f| item.range.start < f.range.start);
            if item.snap != snap || !is_earlier {
                continue;
            }
            let (read, write) = match item.state {
                State::Read | State::MergeWrite => continue,
                State::Exception(_, Phase::Volatile) => (Way::Cow, Way::Cow),
                State::Exception(..) if item.holds_origin() => (Way::Origin, Way::Wait),
                State::Exception(..) => (Way::Wait, Way::Wait),
                State::Merge { is_stranded: false } => (Way::Cow, Way::Wait),
                State::Merge { is_stranded: true } => (Way::Cow, Way::Fail),
            };
            first = Some(Busy {
                range: item.range,
                read,
                write,
            });
        }
        first
    }

    fn overlapping(&self, range: Sectors) -> impl Iterator<Item = &Item> + '_ {
        let items = self.items.iter().flatten();
        items.filter(move |item| item.range.overlaps(&range))
    }
}

#[cfg_attr(CONFIG_RUST, kernel::prelude::kunit_tests(dm_snap_rs_pending))]
#[cfg_attr(not(CONFIG_RUST), cfg(test))]
mod tests {
    use super::*;
    use crate::units::Sector;

    const A: SnapId = SnapId(1);
    const B: SnapId = SnapId(2);

    fn sectors(start: u64, len: u64) -> Sectors {
        Sectors::new(Sector(start), len)
    }

    fn flight() -> Flight {
        Flight::new(4).unwrap()
    }

    #[test]
    fn an_origin_write_waits_for_a_tracked_read() {
        let mut f = flight();
        assert!(f.origin_may_write(sectors(0, 8)));
        let read = f.start_read(A, sectors(8, 8)).unwrap();
        assert!(f.origin_may_write(sectors(0, 8)));
        assert!(!f.origin_may_write(sectors(15, 8)));
        assert_eq!(f.end(read), sectors(8, 8));
        assert!(f.origin_may_write(sectors(15, 8)));
        assert!(f.is_empty());
    }

    #[test]
    fn a_completed_exception_does_not_free_what_is_still_read() {
        let mut f = flight();
        let read = f.start_read(A, sectors(0, 8)).unwrap();
        let copy = f.start_exception(A, sectors(0, 8), Kind::Copied).unwrap();
        f.advance(copy, Phase::Filling);
        f.advance(copy, Phase::Volatile);
        f.end(copy);
        assert!(!f.origin_may_write(sectors(0, 8)));
        f.end(read);
        assert!(f.origin_may_write(sectors(0, 8)));
    }

    #[test]
    fn a_transient_copy_frees_the_origin_once_it_is_in_memory() {
        let mut f = flight();
        let id = f
            .start_exception(A, sectors(0, 8), Kind::CopiedTransient)
            .unwrap();
        assert!(!f.origin_may_write(sectors(0, 8)));
        assert_eq!(f.first_of(A, sectors(0, 8)).unwrap().read, Way::Origin);
        f.advance(id, Phase::Filling);
        assert!(f.origin_may_write(sectors(0, 8)));
        assert_eq!(f.first_of(A, sectors(0, 8)).unwrap().read, Way::Wait);
    }

    #[test]
    fn a_persistent_exception_holds_the_origin_to_the_end() {
        let mut f = flight();
        for kind in [Kind::Copied, Kind::Written] {
            let id = f.start_exception(A, sectors(0, 8), kind).unwrap();
            for phase in [Phase::Filling, Phase::Volatile] {
                f.advance(id, phase);
                assert!(!f.origin_may_write(sectors(7, 1)));
            }
            assert_eq!(f.volatile(sectors(0, 8)).count(), 1);
            let busy = f.first_of(A, sectors(0, 8)).unwrap();
            assert_eq!((busy.read, busy.write), (Way::Cow, Way::Cow));
            f.end(id);
            assert!(f.origin_may_write(sectors(7, 1)));
        }
    }

    #[test]
    fn a_snapshot_meets_its_own_exceptions_only_and_the_first_one_first() {
        let mut f = flight();
        f.start_exception(A, sectors(16, 8), Kind::Copied).unwrap();
        f.start_exception(A, sectors(8, 8), Kind::Copied).unwrap();
        f.start_exception(B, sectors(0, 8), Kind::Copied).unwrap();
        let busy = f.first_of(A, sectors(0, 64)).unwrap();
        assert_eq!(busy.range, sectors(8, 8));
        assert_eq!((busy.read, busy.write), (Way::Origin, Way::Wait));
        assert!(f.first_of(A, sectors(0, 8)).is_none());
    }
}
