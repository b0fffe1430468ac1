// SPDX-License-Identifier: GPL-2.0

//! Owned bios, lists of them, and the data that device-mapper carries with each.
//!
//! C headers: [`include/linux/bio.h`](srctree/include/linux/bio.h),
//! [`include/linux/device-mapper.h`](srctree/include/linux/device-mapper.h)

use super::{buffer::Buffer, device::Device};
use crate::{
    sys,
    units::{Sector, Sectors, SECTOR_SIZE},
};
use core::{marker::PhantomData, mem::ManuallyDrop, ptr::NonNull};
use kernel::{bindings, prelude::*};

/// Data that a target keeps with each bio, from `map` to `end_io`.
///
/// It begins as the default value. It is never dropped, hence `Copy`.
pub(crate) trait PerBio: Copy + Default + Send + 'static {}

/// How the data of a target lies before each bio.
#[repr(C)]
pub(super) struct Attached<P> {
    /// The target that the bio was mapped by.
    target: *mut sys::dm_target,
    /// Whether the bio has got a device beneath to go to.
    is_remapped: bool,
    data: P,
}

impl<P> Attached<P> {
    /// device-mapper aligns the data to this, and no further.
    pub(super) const FITS: () = assert!(core::mem::align_of::<Self>() <= 8);
}

/// What a bio asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    Read,
    Write,
    Discard,
    /// Anything else. A target is only sent what it asked for.
    Other,
}

/// A bio that its holder has to answer for.
///
/// A bio which is dropped ends with an I/O error, so that it can't be lost.
///
/// # Invariants
///
/// `bio` was given to a target of device-mapper, and `attached` is its per-bio data, which is
/// initialised; the bio has not ended and nobody else has it.
pub(crate) struct Bio<P: PerBio> {
    bio: NonNull<bindings::bio>,
    /// Its per-bio data, which device-mapper would have to look for each time.
    attached: NonNull<Attached<P>>,
}

// SAFETY: A bio may be handled by any task.
unsafe impl<P: PerBio> Send for Bio<P> {}
// SAFETY: Through a shared reference, a bio can only be read.
unsafe impl<P: PerBio> Sync for Bio<P> {}

impl<P: PerBio> Bio<P> {
    /// # Safety
    ///
    /// `bio` must have been given to a target whose per-bio data is an initialised `Attached<P>`;
    /// it must not have ended, and nobody else may have it.
    #[inline]
    pub(super) unsafe fn from_raw(bio: NonNull<bindings::bio>) -> Self {
        // SAFETY: The caller vouches for the per-bio data.
        let attached = unsafe { Self::attached_ptr(bio) };
        // INVARIANT: The caller vouches for it.
        Self { bio, attached }
    }

    /// Sets up the per-bio data for a bio that comes to a target's `map`.
    ///
    /// # Safety
    ///
    /// `bio` must have been given to `target`, whose `per_io_data_size` is that of
    /// `Attached<P>`; nobody else may use it.
    pub(super) unsafe fn attach(bio: NonNull<bindings::bio>, target: *mut sys::dm_target) -> Self {
        // SAFETY: The caller vouches for the size of the per-bio data.
        let attached = unsafe { Self::attached_ptr(bio) };
        let () = Attached::<P>::FITS;
        let value = Attached {
            target,
            is_remapped: false,
            data: P::default(),
        };
        // SAFETY: The memory belongs to the target while it has the bio. The default value
        // needs no drop, so nothing is lost by writing over what was there.
        unsafe { attached.write(value) };
        // INVARIANT: The data was just initialised; the caller vouches for the rest.
        Self { bio, attached }
    }

    /// # Safety
    ///
    /// `bio` must have been given to a target with a `per_io_data_size` of `Attached<P>`.
    unsafe fn attached_ptr(bio: NonNull<bindings::bio>) -> NonNull<Attached<P>> {
        // SAFETY: The caller vouches for it.
        let data = unsafe { sys::dm_per_bio_data(bio.as_ptr(), size_of::<Attached<P>>()) };
        // SAFETY: It lies before the bio, in the same piece of memory.
        unsafe { NonNull::new_unchecked(data.cast()) }
    }

    fn attached(&self) -> &Attached<P> {
        // SAFETY: By the invariants, it is initialised, and the reference lives no longer than that
        // to the bio.
        unsafe { self.attached.as_ref() }
    }

    fn attached_mut(&mut self) -> &mut Attached<P> {
        // SAFETY: By the invariants, it is initialised, and an exclusive reference to the bio is one
        // to its data.
        unsafe { self.attached.as_mut() }
    }

    /// What the target keeps with the bio.
    pub(crate) fn data_mut(&mut self) -> &mut P {
        &mut self.attached_mut().data
    }

    /// Gives the bio up without ending it.
    pub(super) fn into_raw(self) -> NonNull<bindings::bio> {
        ManuallyDrop::new(self).bio
    }

    /// What the bio asks for.
    pub(crate) fn op(&self) -> Op {
        match self.opf() & sys::DMSNAP_REQ_OP_MASK {
            bindings::req_op_REQ_OP_READ => Op::Read,
            bindings::req_op_REQ_OP_WRITE => Op::Write,
            bindings::req_op_REQ_OP_DISCARD => Op::Discard,
            _ => Op::Other,
        }
    }

    /// Whether a flag of the request is set.
    fn has(&self, flag: u32) -> bool {
        self.opf() & flag != 0
    }

    /// The operation and the flags of the request.
    fn opf(&self) -> u32 {
        // SAFETY: By the invariants, the bio is valid.
        unsafe { (*self.bio.as_ptr()).bi_opf }
    }

    /// Whether it asks that the device's cache be flushed. Such a bio carries no data: where one
    /// does, device-mapper sends the flush first, by itself.
    pub(crate) fn is_flush(&self) -> bool {
        self.has(sys::DMSNAP_REQ_PREFLUSH)
    }

    /// Whether its data must be on stable media when it ends.
    pub(crate) fn is_fua(&self) -> bool {
        self.has(sys::DMSNAP_REQ_FUA)
    }

    /// The sectors that it is about.
    pub(crate) fn sectors(&self) -> Sectors {
        // SAFETY: By the invariants, the bio is valid.
        let start = unsafe { (*self.bio.as_ptr()).bi_iter.bi_sector };
        // SAFETY: As above.
        let bytes = unsafe { (*self.bio.as_ptr()).bi_iter.bi_size };
        Sectors::new(Sector(start), u64::from(bytes) / SECTOR_SIZE)
    }

    /// The size, in sectors, of the device that it goes to, as it is now.
    pub(crate) fn device_sectors(&self) -> u64 {
        // SAFETY: By the invariants, the bio is valid.
        let bdev = unsafe { (*self.bio.as_ptr()).bi_bdev };
        // SAFETY: Its block device is set from the start, and stays open while the bio is under
        // way.
        unsafe { sys::dmsnap_bdev_nr_sectors(bdev) }
    }

    /// Copies the data of a write into a buffer, from the byte `offset` on.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is not so much room, or if this is no write. Context: any.
    pub(crate) fn copy_to(&self, buffer: &mut Buffer, offset: usize) -> Result {
        let bytes = self.sectors().len().saturating_mul(SECTOR_SIZE) as usize;
        let end = offset.checked_add(bytes).ok_or(EINVAL)?;
        if self.op() != Op::Write || !buffer.is_writable() || end > buffer.len() {
            return Err(EINVAL);
        }
        let (list, within) = buffer.list_at(offset).ok_or(EINVAL)?;
        // SAFETY: The bio is valid and has data, since it is a write. From there on the list has
        // room for all of it, in pages that nobody else uses, by the exclusive reference.
        unsafe { sys::dmsnap_bio_copy_to(self.bio.as_ptr(), list, within) };
        Ok(())
    }

    /// Sends the bio to another place, of a device that its own target has opened.
    ///
    /// With a device of another target, which might be closed before the bio has ended, nothing
    /// is changed, and [`Self::submit`] ends the bio with an error.
    pub(crate) fn remap(&mut self, device: &Device, at: Sector) {
        if !self.is_of(device) {
            return;
        }
        // SAFETY: Both are valid; the device stays open until all bios of its target have ended.
        unsafe { sys::dmsnap_bio_set_dev(self.bio.as_ptr(), device.bdev()) };
        // SAFETY: The bio is valid and ours.
        unsafe { (*self.bio.as_ptr()).bi_iter.bi_sector = at.0 };
        self.attached_mut().is_remapped = true;
    }

    /// Whether the bio came to the target that has opened this device.
    pub(crate) fn is_of(&self, device: &Device) -> bool {
        device.target() == self.attached().target
    }

    /// The raw bio. To be compared, not to be followed.
    pub(super) fn as_raw(&self) -> NonNull<bindings::bio> {
        self.bio
    }

    /// Whether the bio has a device beneath to go to.
    pub(super) fn is_remapped(&self) -> bool {
        self.attached().is_remapped
    }

    /// Submits a bio that was remapped. One that was not ends with an I/O error.
    ///
    /// Context: may sleep; not from `map`, which returns the bio instead.
    pub(crate) fn submit(self) {
        if !self.is_remapped() {
            return self.end(Err(EIO));
        }
        let bio = self.into_raw();
        // SAFETY: The bio is device-mapper's clone, is ours, and has a device to go to.
        unsafe { sys::dm_submit_bio_remap(bio.as_ptr(), core::ptr::null_mut()) };
    }

    /// Which of several bios for one flush it is, see `Setup::want_two_flushes`.
    pub(crate) fn number(&self) -> u32 {
        // SAFETY: By the invariants, the bio is one that device-mapper has given to a target.
        unsafe { sys::dm_bio_get_target_bio_nr(self.bio.as_ptr()) }
    }

    /// Whether its device is being suspended without a flush: then [`Self::requeue`] gives it
    /// back, and nothing that can wait for long may be kept. device-mapper sends bios again that
    /// are given back too early, so it is not enough to do so once.
    pub(crate) fn may_requeue(&self) -> bool {
        // SAFETY: The target exists as long as it has bios.
        unsafe { sys::dm_noflush_suspending(self.attached().target) != 0 }
    }

    /// Gives the bio back to device-mapper, which sends it again when its device has been
    /// resumed. Only where [`Self::may_requeue`], or `presuspend`, says so; else the bio ends with
    /// an error.
    pub(crate) fn requeue(self) {
        let bio = self.into_raw();
        // SAFETY: The bio is valid and ours, and nobody uses it after this.
        unsafe { sys::dmsnap_bio_requeue(bio.as_ptr()) };
    }

    /// Ends the bio. Context: any.
    pub(crate) fn end(self, result: Result) {
        let errno = result.err().map_or(0, |e| e.to_errno());
        let bio = self.into_raw();
        // SAFETY: The bio is valid and ours, and nobody uses it after this.
        unsafe { sys::dmsnap_bio_end(bio.as_ptr(), errno) };
    }
}

impl<P: PerBio> Drop for Bio<P> {
    fn drop(&mut self) {
        // SAFETY: The bio is valid and ours, and nobody uses it after this.
        unsafe { sys::dmsnap_bio_end(self.bio.as_ptr(), EIO.to_errno()) };
    }
}

/// A bio on its way through `map`, where it can still be cut.
///
/// It can't be kept longer than the call.
pub(crate) struct Incoming<'a, P: PerBio>(Bio<P>, PhantomData<&'a ()>);

impl<P: PerBio> Incoming<'_, P> {
    /// # Safety
    ///
    /// Only for a bio that device-mapper is just mapping, for a lifetime that ends with that.
    pub(super) unsafe fn new(bio: Bio<P>) -> Self {
        Self(bio, PhantomData)
    }

    /// Takes only the first sectors, up to `end`; device-mapper sends the rest again as another
    /// bio. Does nothing where the bio ends before, or to a flush.
    #[inline]
    pub(crate) fn accept_until(&mut self, end: Sector) {
        let range = self.0.sectors();
        if end.0 <= range.start || end.0 >= range.end || self.0.is_flush() {
            return;
        }
        let accepted = end.0.saturating_sub(range.start) as u32;
        // SAFETY: device-mapper is mapping the bio, which is no flush; `Setup` asks for no
        // duplicates of anything else, nor for zones and atomic writes. There are fewer sectors
        // than it has, but at least one.
        unsafe { sys::dm_accept_partial_bio(self.0.bio.as_ptr(), accepted) };
    }

    /// The bio, whose length is fixed from now on.
    pub(crate) fn into_bio(self) -> Bio<P> {
        self.0
    }

    /// The bio, to look at.
    pub(crate) fn bio(&self) -> &Bio<P> {
        &self.0
    }
}

/// The proof that a bio was put on a list, which has to answer for it now.
#[must_use]
pub(crate) struct Queued(());

/// A list of bios in their order, strung together by the bios themselves.
///
/// Bios that are still on a list when it is dropped end with an I/O error.
///
/// # Invariants
///
/// From `head`, each bio's `bi_next` leads to the next, and the last is `tail`. All of them
/// fulfil the invariants of [`Bio`] and belong to the list.
pub(crate) struct BioList<P: PerBio> {
    head: Option<NonNull<bindings::bio>>,
    tail: Option<NonNull<bindings::bio>>,
    _data: PhantomData<P>,
}

// SAFETY: See `Bio`.
unsafe impl<P: PerBio> Send for BioList<P> {}
// SAFETY: See `Bio`.
unsafe impl<P: PerBio> Sync for BioList<P> {}

impl<P: PerBio> BioList<P> {
    /// An empty list.
    pub(crate) const fn new() -> Self {
        Self {
            head: None,
            tail: None,
            _data: PhantomData,
        }
    }

    /// Whether there is no bio on it.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// Puts a bio at the end.
    pub(crate) fn push(&mut self, bio: Bio<P>) -> Queued {
        let bio = bio.into_raw();
        // SAFETY: The bio is valid and was owned.
        unsafe { (*bio.as_ptr()).bi_next = core::ptr::null_mut() };
        match self.tail {
            // SAFETY: By the invariant, the last bio is valid and belongs to the list.
            Some(tail) => unsafe { (*tail.as_ptr()).bi_next = bio.as_ptr() },
            None => self.head = Some(bio),
        }
        self.tail = Some(bio);
        Queued(())
    }

    /// Takes the first bio.
    pub(crate) fn pop(&mut self) -> Option<Bio<P>> {
        let bio = self.head?;
        // SAFETY: By the invariant, the bio is valid and belongs to the list.
        let next = unsafe { (*bio.as_ptr()).bi_next };
        // SAFETY: As above. A bio that is submitted must not lead to another.
        unsafe { (*bio.as_ptr()).bi_next = core::ptr::null_mut() };
        self.head = NonNull::new(next);
        if self.head.is_none() {
            self.tail = None;
        }
        // SAFETY: The bio has left the list, which vouched for the invariants.
        Some(unsafe { Bio::from_raw(bio) })
    }

    /// Takes all bios, and leaves the list empty.
    pub(crate) fn take(&mut self) -> Self {
        core::mem::replace(self, Self::new())
    }

    /// Puts all bios of another list at the end.
    pub(crate) fn append(&mut self, other: Self) {
        let other = ManuallyDrop::new(other);
        let Some(head) = other.head else { return };
        match self.tail {
            // SAFETY: By the invariant, the last bio is valid and belongs to the list.
            Some(tail) => unsafe { (*tail.as_ptr()).bi_next = head.as_ptr() },
            None => self.head = Some(head),
        }
        self.tail = other.tail;
    }

    /// Moves the bios for which `wanted` holds to the end of `to`, in their order.
    pub(crate) fn move_if(&mut self, to: &mut Self, mut wanted: impl FnMut(&Bio<P>) -> bool) {
        let mut all = self.take();
        while let Some(bio) = all.pop() {
            let list = if wanted(&bio) { &mut *to } else { &mut *self };
            let Queued(()) = list.push(bio);
        }
    }
}

impl<P: PerBio> Drop for BioList<P> {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}
