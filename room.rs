// SPDX-License-Identifier: GPL-2.0

//! What happens when a COW device is full, or nearly.
//!
//! The administrator chooses, by a feature of the table line: the snapshot is given up, as by the
//! kernel's target; or what needs room waits until the device has grown, for a limited time; or
//! it fails, be it the origin's write. With a low-water mark, an event tells in time.

#![deny(unsafe_code)]

use crate::{
    dm_err, dm_warn,
    live::{Failure, Health, Live},
    stats::Moment,
    table::{Features, WhenFull},
};
use kernel::{
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full, Release},
        Arc, SpinLockIrq,
    },
};

/// What became of a write that finds no room on the COW device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoRoom {
    /// The snapshot has been given up, or overflows.
    GivenUp,
    /// It waits until the COW device has grown.
    Queued,
    /// It fails.
    Refused,
}

/// Writes wait for room on the COW device.
#[derive(Clone, Copy)]
struct Space {
    since: Moment,
    /// The size of the COW device that is not enough.
    sectors: u64,
}

/// How often it is looked whether a COW device that writes wait for has grown: nobody tells.
pub(crate) const SPACE_INTERVAL_MS: u32 = 100;

/// What a snapshot knows of the room on its COW device.
#[pin_data]
pub(crate) struct Room {
    /// What happens when there is none, as a number.
    when_full: Atomic<u32>,
    /// With so few free chunks, an event is raised.
    low_water_mark: Atomic<u64>,
    /// With so many sectors of the COW device the event has been raised, and more chunks have not
    /// been free since; 0 if it has not.
    low_sectors: Atomic<u64>,
    /// That writes fail for want of room has been told, and none had room since.
    is_full: Atomic<u32>,
    /// The size of the COW device with which no chunk was free, the last time.
    full_sectors: Atomic<u64>,
    #[pin]
    space: SpinLockIrq<Option<Space>>,
    /// When the time was up for what waited.
    #[pin]
    expired: SpinLockIrq<Option<Moment>>,
}

/// For so long after the time is up, what still finds no room does not wait again.
const GRACE_MS: u64 = 1000;

impl Room {
    /// With the policy of the kernel's target.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            when_full: Atomic::new(0),
            low_water_mark: Atomic::new(0),
            low_sectors: Atomic::new(0),
            is_full: Atomic::new(0),
            full_sectors: Atomic::new(0),
            space <- new_spinlock_irq!(None, "Live::space"),
            expired <- new_spinlock_irq!(None, "Live::expired"),
        })
    }

    /// Takes over what a table line says.
    pub(crate) fn set_policy(&self, features: &Features) {
        self.when_full.store(features.when_full as u32, Release);
        let low_water_mark = features.low_water_mark.unwrap_or(0);
        self.low_water_mark.store(low_water_mark, Release);
    }

    /// Notes that with this size of the COW device, in sectors, no chunk is free. Context: any.
    pub(crate) fn note_full(&self, sectors: u64) {
        self.full_sectors.store(sectors, Release);
    }

    /// Nobody waits for room any more; answers whether somebody did.
    pub(crate) fn stop_waiting(&self) -> bool {
        self.space.lock().take().is_some()
    }

    /// Whether a write that finds no room fails.
    pub(crate) fn refuses(&self) -> bool {
        self.when_full() == WhenFull::Fail
    }

    fn when_full(&self) -> WhenFull {
        let found = WhenFull::ALL.get(self.when_full.load(Acquire) as usize);
        found.copied().unwrap_or(WhenFull::Invalidate)
    }
}

impl Live {
    /// An exception can't be made: what becomes of the write that needs it depends on what the
    /// administrator asked for. `is_own` says whether it is one of the snapshot itself.
    ///
    /// Context: any.
    pub(crate) fn no_room(self: &Arc<Self>, why: Failure, is_own: bool) -> NoRoom {
        match self.room.when_full() {
            WhenFull::Queue if why == Failure::CowFull => {
                if self.has_waited() {
                    self.fail(why);
                    return NoRoom::GivenUp;
                }
                self.wait_for_space();
                NoRoom::Queued
            }
            WhenFull::Fail if why == Failure::CowFull => {
                if self.room.is_full.xchg(1, Full) == 0 {
                    dm_err!(
                        "COW device {} is full: writes that need room on it fail",
                        self.cow_name()
                    );
                    self.queue_event();
                }
                NoRoom::Refused
            }
            _ if is_own => {
                self.overflow(why);
                NoRoom::GivenUp
            }
            _ => {
                self.fail(why);
                NoRoom::GivenUp
            }
        }
    }

    /// Chunks of the COW device, which has so many sectors, have been taken: tells if few are left.
    /// Context: any.
    pub(crate) fn took_room(self: &Arc<Self>, sectors: u64) {
        if self.room.is_full.load(Acquire) != 0 {
            self.room.is_full.store(0, Release);
        }
        let low_water_mark = self.room.low_water_mark.load(Acquire);
        if low_water_mark == 0 {
            return;
        }
        if self.store.free_chunks() > low_water_mark {
            self.room.low_sectors.store(0, Release);
        } else if self.room.low_sectors.xchg(sectors, Full) != sectors {
            dm_warn!(
                "COW device {} has no more than {} free chunks",
                self.cow_name(),
                low_water_mark
            );
            self.queue_event();
        }
    }

    /// Whether the time has just been up for what waited.
    fn has_waited(&self) -> bool {
        let expired = *self.room.expired.lock();
        expired.is_some_and(|when| when.millis() < GRACE_MS)
    }

    /// Writes wait until the COW device has grown. Context: any.
    fn wait_for_space(self: &Arc<Self>) {
        let mut space = self.room.space.lock();
        if space.is_some() {
            return;
        }
        *space = Some(Space {
            since: Moment::now(),
            // It may have grown since.
            sectors: self.room.full_sectors.load(Acquire),
        });
        drop(space);
        dm_warn!(
            "COW device {} is full: writes that need room on it wait until it has grown",
            self.cow_name()
        );
        self.queue_event();
        self.start_space_timer();
    }

    /// The work of [`Self::wait_for_space`].
    pub(crate) fn look_for_space(self: &Arc<Self>) {
        let sectors = self.devices().map_or(u64::MAX, |d| d.cow.sectors());
        // A device that is gone has no size, and will not grow.
        let is_over = sectors == 0
            || !self.is_active()
            || self.is_merging()
            || self.room.when_full() != WhenFull::Queue
            || !matches!(self.health(), Health::Good | Health::Overflowed);
        let mut space = self.room.space.lock();
        let Some(waits) = *space else { return };
        let timeout = crate::dm::no_space_timeout();
        let is_late = timeout.is_some_and(|t| waits.since.millis() / 1000 >= u64::from(t));
        if !is_over && sectors <= waits.sectors && !is_late {
            // Under the lock, by which whoever leaves knows that no timer is started any more.
            return self.start_space_timer();
        }
        *space = None;
        drop(space);
        if is_late && !is_over && sectors <= waits.sectors {
            dm_err!("COW device {} has not grown in time", self.cow_name());
            // If anybody still waits, and finds no room, the snapshot is given up for that.
            *self.room.expired.lock() = Some(Moment::now());
        }
        self.origin.wake_all();
    }
}
