// SPDX-License-Identifier: GPL-2.0

//! Many reads or writes at a time, of which all are waited for.
//!
//! For what sleeps anyway: metadata that is read when a snapshot is activated, and merges. All
//! are sent at once, so that a device's depth is used.

#![deny(unsafe_code)]

use crate::dm::{Buffer, Client, Device, Finished, IoDone, Request, Span, WriteFlags};
use kernel::{
    new_condvar, new_spinlock_irq,
    prelude::*,
    sync::{Arc, CondVar, SpinLockIrq},
};

/// One of many: where, and the memory.
pub(crate) struct Job {
    pub(crate) span: Span,
    pub(crate) buffer: Buffer,
}

/// Reads from a device what all jobs say, and gives their buffers back in the same order.
///
/// # Errors
///
/// `EIO` if any of them fails, `ENOMEM`. Sleeps until all have ended.
pub(crate) fn read(client: &Arc<Client>, device: &Device, jobs: KVec<Job>) -> Result<KVec<Buffer>> {
    run(client, device, jobs, None)
}

/// Writes to a device what all jobs say; the buffers come back in the same order.
///
/// # Errors
///
/// As for [`read`]; some of it may have been written.
pub(crate) fn write(
    client: &Arc<Client>,
    device: &Device,
    jobs: KVec<Job>,
    flags: WriteFlags,
) -> Result<KVec<Buffer>> {
    run(client, device, jobs, Some(flags))
}

#[pin_data]
struct Many {
    #[pin]
    state: SpinLockIrq<State>,
    #[pin]
    done: CondVar,
}

struct State {
    running: usize,
    has_failed: bool,
    /// The memory of those that have ended, each in its place.
    buffers: KVec<Option<Buffer>>,
}

impl IoDone for Many {
    fn io_done(this: Arc<Self>, finished: Finished<Self>) {
        let mut state = this.state.lock();
        state.has_failed |= finished.result.is_err();
        if let Some(place) = state.buffers.get_mut(finished.tag) {
            *place = finished.buffer;
        }
        state.running = state.running.saturating_sub(1);
        if state.running == 0 {
            this.done.notify_all();
        }
    }
}

/// Sends all, as writes if there are flags, and waits.
fn run(
    client: &Arc<Client>,
    device: &Device,
    jobs: KVec<Job>,
    flags: Option<WriteFlags>,
) -> Result<KVec<Buffer>> {
    // All memory comes first: what has been sent has to be waited for.
    let count = jobs.len();
    let mut buffers = KVec::with_capacity(count, GFP_KERNEL)?;
    let mut requests = KVec::with_capacity(count, GFP_KERNEL)?;
    let mut ended = KVec::with_capacity(count, GFP_KERNEL)?;
    for _ in 0..count {
        buffers.push(None, GFP_KERNEL)?;
        requests.push(Request::new(GFP_KERNEL)?, GFP_KERNEL)?;
    }
    let state = State {
        running: count,
        has_failed: false,
        buffers,
    };
    let many = Arc::pin_init(
        pin_init!(Many {
            state <- new_spinlock_irq!(state, "Many::state"),
            done <- new_condvar!("Many::done"),
        }),
        GFP_KERNEL,
    )?;
    for (tag, (job, request)) in jobs.into_iter().zip(requests).enumerate() {
        let Job { span, buffer } = job;
        match flags {
            None => request.read(client, device, span, buffer, many.clone(), tag),
            Some(flags) => request.write(client, device, span, buffer, flags, many.clone(), tag),
        }
    }
    let mut state = many.state.lock();
    while state.running != 0 {
        many.done.wait(&mut state);
    }
    if state.has_failed {
        return Err(EIO);
    }
    let buffers = core::mem::take(&mut state.buffers);
    drop(state);
    for buffer in buffers {
        ended.push(buffer.ok_or(EIO)?, GFP_KERNEL)?;
    }
    Ok(ended)
}
