// SPDX-License-Identifier: GPL-2.0

//! A stand-in for the module's `many.rs`: many reads, one after the other.

use crate::dm::{Buffer, Client, Device, Span};
use kernel::prelude::*;
use std::sync::Arc;

/// One of many: where, and the memory.
pub(crate) struct Job {
    pub(crate) span: Span,
    pub(crate) buffer: Buffer,
}

/// Reads what all jobs say, and gives their buffers back in the same order.
pub(crate) fn read(client: &Arc<Client>, device: &Device, jobs: KVec<Job>) -> Result<KVec<Buffer>> {
    let mut ended = KVec::with_capacity(jobs.len(), GFP_KERNEL)?;
    for job in jobs {
        let Job { span, mut buffer } = job;
        client.read(device, span.at, &mut buffer, span.bytes)?;
        ended.push(buffer, GFP_KERNEL)?;
    }
    Ok(ended)
}
