// SPDX-License-Identifier: GPL-2.0

//! A discard of a snapshot: what it is about is zeroed on the COW device.
//!
//! The chunks keep their places there, as with the kernel's target. The bio waits until the
//! zeroes have been written; then it ends, or goes on to the origin.

#![deny(unsafe_code)]

use crate::{
    dm::{Bio, BioList, Buffer, Finished, IoDone, Queued, Request, Span, WriteFlags},
    live::{Devices, Live},
    slot::Io,
    units::{Sector, SECTOR_SIZE},
};
use kernel::{
    new_spinlock_irq,
    prelude::*,
    sync::{Arc, SpinLockIrq, UniqueArc},
};

/// The memory of a discard that is still to be begun.
pub(crate) struct Zeroing {
    place: UniqueArc<core::mem::MaybeUninit<Waiting>>,
    request: Request<Waiting>,
    buffer: Buffer,
}

/// A discard under way.
#[pin_data]
struct Waiting {
    live: Arc<Live>,
    #[pin]
    bio: SpinLockIrq<BioList<Io>>,
}

impl Zeroing {
    /// Gets the memory to zero so many bytes.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. May sleep.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        Ok(Self {
            place: UniqueArc::new_uninit(GFP_KERNEL)?,
            request: Request::new(GFP_KERNEL)?,
            buffer: Buffer::zeroes(bytes, GFP_KERNEL)?,
        })
    }

    /// Whether this is memory enough for so many bytes.
    pub(crate) fn is_enough(&self, bytes: usize) -> bool {
        bytes <= self.buffer.len()
    }

    /// Zeroes what a discard is about, from that sector of the COW device on. Not under a lock.
    pub(crate) fn go(
        self,
        live: &Arc<Live>,
        devices: &Devices,
        at: Sector,
        bio: Bio<Io>,
    ) -> Queued {
        let bytes = bio.sectors().len().saturating_mul(SECTOR_SIZE) as usize;
        let mut bios = BioList::new();
        let queued = bios.push(bio);
        let waiting = pin_init!(Waiting {
            live: live.clone(),
            bio <- new_spinlock_irq!(bios, "Waiting::bio"),
        });
        match self.place.pin_init_with(waiting) {
            Ok(waiting) => self.request.write(
                &live.client,
                &devices.cow,
                Span::at(at, bytes),
                self.buffer,
                WriteFlags::Data,
                waiting.into(),
                0,
            ),
            // Cannot happen: the initialiser allocates nothing.
            Err(e) => match e {},
        }
        queued
    }
}

impl IoDone for Waiting {
    fn io_done(this: Arc<Self>, finished: Finished<Self>) {
        let bio = this.bio.lock().pop();
        let Some(mut bio) = bio else { return };
        match (finished.result, *bio.data_mut()) {
            (Ok(()), Io::PassedDown) => {
                *bio.data_mut() = Io::Zeroed;
                let mut bios = BioList::new();
                let _ = bios.push(bio);
                this.live.retry(bios);
            }
            (result, _) => bio.end(result),
        }
    }
}
