// SPDX-License-Identifier: GPL-2.0

//! One read of DEV, many writes to COW devices: the steps of `copy.rs`.

use crate::commit::Urgency;
use crate::dm::{Bio, BioList, Device, Queued};
use crate::live::{Failure, Live};
use crate::pending::{Phase, Saved};
use crate::registry::Origin;
use crate::slot::{Io, Need};
use crate::units::{Sector, Sectors};
use crate::world::Job;
use kernel::{prelude::Result, sync::Arc};

/// A run of chunks of a snapshot that a copy saves.
pub(crate) struct Destination {
    pub(crate) live: Arc<Live>,
    pub(crate) saved: Saved,
    pub(crate) from: Sectors,
    pub(crate) to: Sector,
    pub(crate) cow: Device,
    pub(crate) is_urgent: bool,
}

/// A copy.
pub(crate) struct Prepared {
    destinations: Vec<Destination>,
    room: usize,
    /// What there is memory for.
    range: Sectors,
    overlay: BioList<Io>,
}

impl Prepared {
    pub(crate) fn new(need: &Need) -> Result<Self> {
        Ok(Self {
            destinations: Vec::new(),
            room: need.runs + 1,
            range: need.range,
            overlay: BioList::new(),
        })
    }

    pub(crate) fn is_enough(&self, need: &Need) -> bool {
        need.runs < self.room && self.range.contains(&need.range)
    }

    pub(crate) fn has_room_for(&self, sectors: &Sectors, _block: u64) -> bool {
        self.destinations.len() < self.room && self.range.contains(sectors)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.destinations.is_empty()
    }

    pub(crate) fn add(&mut self, destination: Destination, _source: Device) {
        assert!(
            self.range.contains(&destination.from),
            "a copy is to hold more than it has memory for"
        );
        self.destinations.push(destination);
    }

    pub(crate) fn lay_over(&mut self, bio: Bio<Io>) -> Queued {
        self.overlay.push(bio)
    }

    pub(crate) fn go(self, origin: &Arc<Origin>) {
        if !self.destinations.is_empty() {
            origin.world.queue(Job::Copy(origin.clone(), self));
        }
    }

    /// What the device does, and the works behind it.
    pub(crate) fn run(mut self, origin: &Arc<Origin>) {
        let read: Vec<Vec<u8>> = self
            .destinations
            .iter()
            .map(|d| origin.world.read_dev(d.from))
            .collect();
        let mut woken = BioList::new();
        for destination in &self.destinations {
            let Destination { live, saved, .. } = destination;
            if live.is_persistent {
                continue;
            }
            origin.world.cover(live.id, live.chunk_size, &[*saved]);
            if let Some(mut slot) = origin.slot(saved.slot) {
                let range = slot.flight.advance(saved.item, Phase::Filling);
                slot.wake(range, &mut woken);
            }
        }
        origin.retry(woken);
        for (destination, mut data) in self.destinations.into_iter().zip(read) {
            let Destination {
                live,
                saved,
                from,
                to,
                is_urgent,
                ..
            } = destination;
            let mut done = BioList::new();
            while let Some(bio) = self.overlay.pop() {
                let into = (bio.sectors().start - from.start) as usize;
                let len = bio.sectors().len() as usize;
                data[into..into + len].fill(bio.value());
                let _ = done.push(bio);
            }
            let result = live.write_cow(to, &data);
            match result {
                Err(_) => live.not_saved(saved.slot, saved.item, Failure::WriteCow),
                Ok(()) if is_urgent => live.saved(saved, Urgency::Soon),
                Ok(()) => live.saved(saved, Urgency::Later),
            }
            while let Some(bio) = done.pop() {
                bio.end(result);
            }
        }
    }
}
