// SPDX-License-Identifier: GPL-2.0

//! What may outlive a target: a way to raise its events, and to its mapped device.

use crate::sys;
use core::ptr::NonNull;
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
};

/// A reference to a target that may be kept for any time.
///
/// Once the target has been destroyed, it leads nowhere, and all calls do nothing.
#[derive(Clone)]
pub(crate) struct Handle(Arc<Inner>);

#[pin_data]
struct Inner {
    /// The target, while it exists.
    #[pin]
    target: Mutex<Option<Target>>,
}

/// # Invariants
///
/// The target is valid while this value is in the mutex of a [`Handle`].
struct Target(NonNull<sys::dm_target>);

// SAFETY: What is done with the target may be done by any task.
unsafe impl Send for Target {}

impl Handle {
    /// A handle for a target that is being constructed. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `target` must be valid until [`Self::revoke`] has been called.
    pub(super) unsafe fn new(target: NonNull<sys::dm_target>) -> Result<Self> {
        // INVARIANT: The caller vouches for it.
        let target = Target(target);
        let inner = pin_init!(Inner {
            target <- new_mutex!(Some(target)),
        });
        Ok(Self(Arc::pin_init(inner, GFP_KERNEL)?))
    }

    /// From now on the handle leads nowhere. May sleep.
    pub(super) fn revoke(&self) {
        *self.0.target.lock() = None;
    }

    /// Wakes whoever waits for an event of the device (`dmsetup wait`, dmeventd). May sleep.
    pub(crate) fn raise_event(&self) {
        if let Some(target) = &*self.0.target.lock() {
            // SAFETY: By the invariant, the target is valid, and its table with it.
            unsafe { sys::dm_table_event((*target.0.as_ptr()).table) };
        }
    }

    /// Waits until all bios that the target's device had accepted before have ended. Those that
    /// come meanwhile wait and go on afterwards. May sleep for as long as a bio takes.
    ///
    /// Must not be called by what those bios wait for. Takes the device's suspend lock; to be
    /// called from `preresume` of the target `own`, whose device's lock is held already: if it is
    /// the same device, it is suspended, and nothing is done.
    pub(crate) fn drain(&self, own: &Handle) {
        if self.is_same_device(own) {
            return;
        }
        let Some(held) = self.hold() else { return };
        // SAFETY: The device is held. Together with the next call this is a pair.
        unsafe { sys::dm_internal_suspend_fast(held.as_ptr()) };
        // SAFETY: As above; this task has the suspend lock, by the call before.
        unsafe { sys::dm_internal_resume_fast(held.as_ptr()) };
        // SAFETY: The reference is that of `hold`.
        unsafe { sys::dm_put(held.as_ptr()) };
    }

    /// Whether both lead to the same mapped device. May sleep.
    pub(crate) fn is_same_device(&self, other: &Handle) -> bool {
        self.mapped_device() == other.mapped_device()
    }

    /// Whether both lead to the same mapped device, by different tables: never are both in use.
    /// May sleep.
    pub(crate) fn replaces(&self, other: &Handle) -> bool {
        self.is_same_device(other) && self.table() != other.table()
    }

    /// The table. To be compared, not to be followed.
    fn table(&self) -> *mut sys::dm_table {
        match &*self.0.target.lock() {
            // SAFETY: By the invariant, the target is valid.
            Some(target) => unsafe { (*target.0.as_ptr()).table },
            None => core::ptr::null_mut(),
        }
    }

    /// The mapped device. To be compared, not to be followed.
    fn mapped_device(&self) -> *mut sys::mapped_device {
        match &*self.0.target.lock() {
            // SAFETY: By the invariant, the target is valid, and its table with it.
            Some(target) => unsafe { sys::dm_table_get_md((*target.0.as_ptr()).table) },
            None => core::ptr::null_mut(),
        }
    }

    /// Takes a reference to the mapped device. `None` if it is about to go, or has gone.
    fn hold(&self) -> Option<NonNull<sys::mapped_device>> {
        let target = self.0.target.lock();
        let target = target.as_ref()?;
        // SAFETY: By the invariant, the target is valid, and its table with it.
        let md = unsafe { sys::dm_table_get_md((*target.0.as_ptr()).table) };
        // SAFETY: The mapped device is valid as long as its table.
        let ret = unsafe { sys::dm_hold(md) };
        if ret != 0 {
            return None;
        }
        NonNull::new(md)
    }
}
