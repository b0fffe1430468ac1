// SPDX-License-Identifier: GPL-2.0

//! A target while it is being constructed.

use super::{
    device::{Device, OpenDevice},
    handle::Handle,
};
use crate::sys;
use core::ptr::NonNull;
use kernel::{bindings, prelude::*};

/// The arguments of a table line, behind the target's name.
pub(crate) struct Args<'a> {
    argv: &'a [*mut c_char],
}

impl<'a> Args<'a> {
    /// # Safety
    ///
    /// `argv` must be valid for reads of `argc` pointers to NUL-terminated strings, which must
    /// stay unchanged for `'a`.
    pub(super) unsafe fn new(argc: c_uint, argv: *mut *mut c_char) -> Self {
        if argc == 0 || argv.is_null() {
            return Self { argv: &[] };
        }
        // SAFETY: The caller vouches for it.
        let argv = unsafe { core::slice::from_raw_parts(argv.cast_const(), argc as usize) };
        Self { argv }
    }

    /// All arguments, in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a CStr> + 'a {
        self.argv.iter().map(|arg| {
            // SAFETY: By the requirements of `new`, it is a NUL-terminated string that lives
            // for 'a.
            unsafe { CStr::from_char_ptr(*arg) }
        })
    }
}

/// A target while its constructor runs: opens its devices and says what it wants to be sent.
pub(crate) struct Setup<'a> {
    target: &'a mut sys::dm_target,
    devices: KVec<OpenDevice>,
    handle: Handle,
    has_error: bool,
}

impl<'a> Setup<'a> {
    /// # Safety
    ///
    /// `target` must stay valid until the parts that [`Self::into_parts`] gives have been
    /// disposed of: the handle revoked and the devices closed.
    pub(super) unsafe fn new(target: &'a mut sys::dm_target) -> Result<Self> {
        let raw = NonNull::from(&mut *target);
        Ok(Self {
            target,
            devices: KVec::new(),
            // SAFETY: The caller vouches for it.
            handle: unsafe { Handle::new(raw)? },
            has_error: false,
        })
    }

    pub(super) fn into_parts(self) -> (KVec<OpenDevice>, Handle) {
        (self.devices, self.handle)
    }

    /// The end of the target in its table, in sectors. Sectors of the table are those of the
    /// device below, wherever the target begins.
    pub(crate) fn end(&self) -> u64 {
        self.target.begin.saturating_add(self.target.len)
    }

    /// Opens a device for reading, and for writing unless the table is read-only.
    ///
    /// # Errors
    ///
    /// What device-mapper says, `ENOMEM`. May sleep.
    pub(crate) fn open(&mut self, path: &CStr) -> Result<Device> {
        // SAFETY: The table of a target under construction is valid.
        let mode = unsafe { sys::dm_table_get_mode(self.target.table) };
        self.open_mode(path, mode)
    }

    /// Opens a device to be read. It is opened as the table says where that is possible, as the
    /// other lines of the table do: if one of them asked for more than a line before, device-mapper
    /// would open the device anew, and free what the [`Device`] of that line stands for.
    ///
    /// # Errors
    ///
    /// What device-mapper says, `ENOMEM`. May sleep.
    pub(crate) fn open_readable(&mut self, path: &CStr) -> Result<Device> {
        self.open(path)
            .or_else(|_| self.open_mode(path, sys::DMSNAP_OPEN_READ))
    }

    /// Opens a device for reading and writing, whatever the table says.
    ///
    /// # Errors
    ///
    /// What device-mapper says, `ENOMEM`. May sleep.
    pub(crate) fn open_writable(&mut self, path: &CStr) -> Result<Device> {
        self.open_mode(path, sys::DMSNAP_OPEN_READ | sys::DMSNAP_OPEN_WRITE)
    }

    fn open_mode(&mut self, path: &CStr, mode: bindings::blk_mode_t) -> Result<Device> {
        // The place to keep it comes first, so that an open device is never forgotten.
        self.devices.reserve(1, GFP_KERNEL)?;
        let target = NonNull::from(&mut *self.target);
        // SAFETY: The requirement of `Setup::new` says that the devices will be closed before
        // the target goes.
        let (open, device) = unsafe { OpenDevice::open(target, path, mode)? };
        self.devices.push(open, GFP_KERNEL)?;
        Ok(device)
    }

    /// Says in short why the constructor fails: for the line that device-mapper itself logs. What
    /// is said first counts, since it is the most precise.
    pub(crate) fn set_error(&mut self, why: &'static CStr) {
        if !core::mem::replace(&mut self.has_error, true) {
            self.target.error = why.as_char_ptr().cast_mut();
        }
    }

    /// Asks for flushes, even where no device beneath has a cache to be flushed.
    pub(crate) fn want_flushes(&mut self) {
        self.target.num_flush_bios = 1;
        self.target.set_flush_supported(true);
    }

    /// Asks for each flush twice, numbered 0 and 1: one for each of two devices.
    pub(crate) fn want_two_flushes(&mut self) {
        self.target.num_flush_bios = 2;
        self.target.set_flush_supported(true);
    }

    /// Asks for discards, whether the devices beneath take them or not.
    pub(crate) fn want_discards(&mut self) {
        self.target.num_discard_bios = 1;
        self.target.set_discards_supported(true);
    }

    /// Asks for discards, if all devices beneath take them.
    pub(crate) fn pass_discards(&mut self) {
        self.target.num_discard_bios = 1;
    }

    /// Asks for what else removes data without bringing any, if all devices beneath take that.
    pub(crate) fn pass_erasures(&mut self) {
        self.target.num_write_zeroes_bios = 1;
        self.target.num_secure_erase_bios = 1;
    }

    /// Asks for flushes if a device beneath has a cache.
    pub(crate) fn pass_flushes(&mut self) {
        self.target.num_flush_bios = 1;
    }

    /// A reference to the target that may be kept.
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }
}
