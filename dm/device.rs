// SPDX-License-Identifier: GPL-2.0

//! The devices beneath a target.
//!
//! C header: [`include/linux/device-mapper.h`](srctree/include/linux/device-mapper.h)

use crate::sys;
use core::ptr::NonNull;
use kernel::{
    bindings, fmt,
    prelude::*,
    sync::{Arc, Completion},
};

/// A device that a target's constructor has opened.
///
/// A `Device` is a counted reference and is cheap to clone. Device-mapper closes the
/// device when the target is destroyed; the adapter that destroys it waits until the
/// last clone has gone, so whoever holds one may send I/O to it.
#[derive(Clone)]
pub(crate) struct Device(Arc<Inner>);

/// # Invariants
///
/// - `dev` and `target` are valid until `gone` is completed.
struct Inner {
    dev: NonNull<sys::dm_dev>,
    target: NonNull<sys::dm_target>,
    gone: Arc<Completion>,
}

// SAFETY: A `dm_dev` is not tied to a task; what is read from it never changes while it is open.
unsafe impl Send for Inner {}
// SAFETY: See `Send`.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        self.gone.complete_all();
    }
}

/// The owning side of a [`Device`]: what the adapter keeps, to close it at the end.
pub(super) struct OpenDevice {
    dev: NonNull<sys::dm_dev>,
    gone: Arc<Completion>,
}

// SAFETY: The pointer is only used by the destructor, which may run in any task.
unsafe impl Send for OpenDevice {}
// SAFETY: Nothing can be done with a shared reference.
unsafe impl Sync for OpenDevice {}

impl OpenDevice {
    /// Opens the device that `path` names, or of that `major:minor`, for reading and, if the
    /// table is not read-only, for writing. May sleep.
    ///
    /// # Errors
    ///
    /// What device-mapper says: `ENOENT`, `ENODEV`, `EBUSY`, `EACCES`, …
    ///
    /// # Safety
    ///
    /// `target` must be valid until [`Self::close`] has returned.
    pub(super) unsafe fn open(
        target: NonNull<sys::dm_target>,
        path: &CStr,
        mode: bindings::blk_mode_t,
    ) -> Result<(Self, Device)> {
        let gone = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
        let mut dev = core::ptr::null_mut();
        // SAFETY: The caller vouches for `target`; the path ends with a NUL; `dev` is valid for
        // a write.
        let ret =
            unsafe { sys::dm_get_device(target.as_ptr(), path.as_char_ptr(), mode, &mut dev) };
        kernel::error::to_result(ret)?;
        let dev = NonNull::new(dev).ok_or(ENODEV)?;
        let open = Self {
            dev,
            gone: gone.clone(),
        };
        // INVARIANT: `close` waits for `gone` before it closes the device, and the caller keeps
        // `target` until then.
        match Arc::new(Inner { dev, target, gone }, GFP_KERNEL) {
            Ok(inner) => Ok((open, Device(inner))),
            Err(_) => {
                // SAFETY: The device was opened above for this target, and nobody else knows it.
                unsafe { sys::dm_put_device(target.as_ptr(), dev.as_ptr()) };
                Err(ENOMEM)
            }
        }
    }

    /// Closes the device once the last [`Device`] has gone. Sleeps until then.
    ///
    /// # Safety
    ///
    /// `target` must be the one that [`Self::open`] was called with.
    pub(super) unsafe fn close(self, target: NonNull<sys::dm_target>) {
        self.gone.wait_for_completion();
        // SAFETY: The device was opened for this target, and no reference to it is left.
        unsafe { sys::dm_put_device(target.as_ptr(), self.dev.as_ptr()) };
    }

    /// For `iterate_devices`: the raw device.
    pub(super) fn as_ptr(&self) -> *mut sys::dm_dev {
        self.dev.as_ptr()
    }
}

impl Device {
    /// The raw block device. Valid as long as `self`.
    pub(super) fn bdev(&self) -> *mut bindings::block_device {
        // SAFETY: By the invariant of `Inner`, the `dm_dev` is valid.
        unsafe { (*self.0.dev.as_ptr()).bdev }
    }

    /// The raw `dm_dev`. Valid as long as `self`.
    pub(super) fn as_ptr(&self) -> *mut sys::dm_dev {
        self.0.dev.as_ptr()
    }

    /// The target that opened it. To be compared, not to be followed.
    pub(super) fn target(&self) -> *mut sys::dm_target {
        self.0.target.as_ptr()
    }

    /// The device's name as device-mapper writes it in tables: `major:minor`.
    pub(crate) fn name(&self) -> &CStr {
        // SAFETY: By the invariant of `Inner`, the `dm_dev` is valid.
        let name = unsafe { &(*self.0.dev.as_ptr()).name };
        // SAFETY: device-mapper keeps a NUL-terminated string there.
        unsafe { CStr::from_char_ptr(name.as_ptr()) }
    }

    /// Its number (`dev_t`): the same for whoever opened the same device.
    pub(crate) fn number(&self) -> u32 {
        // SAFETY: The block device of an open `dm_dev` is valid, and its number never changes.
        unsafe { (*self.bdev()).bd_dev }
    }

    /// Its size in sectors, as it is now: a device can grow.
    pub(crate) fn sectors(&self) -> u64 {
        // SAFETY: The block device of an open `dm_dev` is valid.
        unsafe { sys::dmsnap_bdev_nr_sectors(self.bdev()) }
    }

    /// Its logical block size in bytes: no I/O may be smaller, none may begin elsewhere.
    pub(crate) fn logical_block_size(&self) -> u32 {
        // SAFETY: The block device of an open `dm_dev` is valid.
        unsafe { sys::dmsnap_bdev_logical_block_size(self.bdev()) }
    }

    /// Whether it takes discards.
    pub(crate) fn takes_discards(&self) -> bool {
        // SAFETY: The block device of an open `dm_dev` is valid.
        unsafe { sys::dmsnap_bdev_max_discard_sectors(self.bdev()) != 0 }
    }

    /// Whether the device can't be written to.
    pub(crate) fn is_read_only(&self) -> bool {
        // SAFETY: The block device of an open `dm_dev` is valid.
        unsafe { sys::dmsnap_bdev_read_only(self.bdev()) }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().to_str().unwrap_or("?"))
    }
}
