// SPDX-License-Identifier: GPL-2.0

//! A workqueue on which memory may be reclaimed, and how not to wait for that.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use crate::sys;
use core::{ops::Deref, ptr::NonNull};
use kernel::{
    bindings,
    prelude::*,
    types::NotThreadSafe,
    workqueue::{DelayedWork, Queue, Work},
};

/// A workqueue of the module's own, with a rescuer thread, so that its work goes on
/// when no memory is left to start threads with.
///
/// # Invariants
///
/// The pointer is to a workqueue that lives until this value is dropped.
pub(crate) struct WorkQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: A workqueue may be used from any task.
unsafe impl Send for WorkQueue {}
// SAFETY: All that can be done with a shared reference is to queue work, which takes its own locks.
unsafe impl Sync for WorkQueue {}

impl WorkQueue {
    /// Makes the workqueue. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(name: &'static CStr) -> Result<Self> {
        // SAFETY: The name is a NUL-terminated string that lives for ever.
        let queue = unsafe { sys::dmsnap_alloc_workqueue(name.as_char_ptr()) };
        // INVARIANT: The workqueue is destroyed by `drop` only.
        Ok(Self(NonNull::new(queue).ok_or(ENOMEM)?))
    }

    /// Sleeps until all that was queued has run, and all that this has queued in turn.
    pub(crate) fn drain(&self) {
        // SAFETY: By the invariant, the workqueue is alive.
        unsafe { sys::dmsnap_drain_workqueue(self.0.as_ptr()) };
    }

    /// If the work's time has not come yet, has it run now. Sleeps until it has run.
    pub(crate) fn flush_delayed<T, const ID: u64>(work: &DelayedWork<T, ID>) {
        // SAFETY: The pointer comes from a reference.
        let work = unsafe { DelayedWork::raw_as_work(work) };
        // SAFETY: As above.
        let work = unsafe { Work::raw_get(work) };
        // SAFETY: The work was initialised by its constructor as a delayed one. By the rules of
        // `DelayedWork`, whoever queued it has given it what it needs until it has run.
        unsafe { sys::dmsnap_flush_delayed_work(work) };
    }
}

impl Deref for WorkQueue {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        // SAFETY: By the invariant, the workqueue lives as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for WorkQueue {
    /// Waits until all that was queued has run.
    fn drop(&mut self) {
        // SAFETY: By the invariant, the workqueue is alive, and nobody can queue anything more.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) }
    }
}

/// Sleeps until each task that is within the module's code now, preempted there, has left it.
pub(crate) fn wait_for_tasks() {
    // SAFETY: There are no preconditions, other than that it may sleep.
    unsafe { sys::dmsnap_synchronize_rcu_tasks() };
}

/// As long as it lives, allocations of this task do no I/O to get memory: what is allocated on
/// the way of a bio must not wait for another bio.
pub(crate) struct NoIo {
    flags: c_uint,
    _task: NotThreadSafe,
}

impl NoIo {
    /// From now on. Nests.
    pub(crate) fn enter() -> Self {
        Self {
            // SAFETY: There are no preconditions.
            flags: unsafe { sys::dmsnap_noio_save() },
            _task: NotThreadSafe,
        }
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {
        // SAFETY: The flags are those that this task, which the value can't leave, was given.
        unsafe { sys::dmsnap_noio_restore(self.flags) };
    }
}
