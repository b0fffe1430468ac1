// SPDX-License-Identifier: GPL-2.0

//! Reads and writes of the module's own, by dm-io.
//!
//! C header: [`include/linux/dm-io.h`](srctree/include/linux/dm-io.h)
//!
//! An asynchronous [`Request`] is made beforehand, when memory may still be refused. Once
//! made, it can be sent without asking for any more: dm-io takes what it needs from its own
//! pools. A read owns the buffer that it fills, and gives it back when it ends; writes share
//! theirs, which therefore can't be changed while they are under way.

use super::{buffer::Buffer, device::Device};
use crate::{sys, units::Sector};
use core::ptr::NonNull;
use kernel::{alloc::Flags, bindings, prelude::*, sync::Arc};

/// The largest amount of memory that is moved by one request, in bytes.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// Memory pools for I/O.
///
/// # Invariants
///
/// The pointer is to a client of dm-io that lives until this value is dropped.
pub(crate) struct Client(NonNull<sys::dm_io_client>);

// SAFETY: A dm-io client is not tied to a task.
unsafe impl Send for Client {}
// SAFETY: dm-io takes its own locks.
unsafe impl Sync for Client {}

impl Client {
    /// Makes the pools. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: There are no preconditions.
        let client = kernel::error::from_err_ptr(unsafe { sys::dm_io_client_create() })?;
        // INVARIANT: `drop` alone destroys it.
        Ok(Self(NonNull::new(client).ok_or(ENOMEM)?))
    }

    /// Reads `bytes` bytes from the sector `at` to the beginning of `buffer`. Sleeps until done.
    ///
    /// # Errors
    ///
    /// `EIO` if the device fails, `EINVAL` if the buffer is too small.
    pub(crate) fn read(
        &self,
        device: &Device,
        at: Sector,
        buffer: &mut Buffer,
        bytes: usize,
    ) -> Result {
        if !buffer.is_writable() {
            return Err(EINVAL);
        }
        let flags = bindings::req_op_REQ_OP_READ | sys::DMSNAP_REQ_SYNC;
        // SAFETY: The exclusive reference keeps the pages for the device until dm-io returns,
        // which is when the read has ended, since there is no callback.
        unsafe { self.send(device, Span::at(at, bytes), buffer, flags, NO_NOTIFY) }
    }

    /// Writes `bytes` bytes from the beginning of `buffer` to the sector `at`. Sleeps until done.
    ///
    /// # Errors
    ///
    /// `EIO` if the device fails, `EINVAL` if the buffer is too small.
    pub(crate) fn write(
        &self,
        device: &Device,
        at: Sector,
        buffer: &Buffer,
        bytes: usize,
        flags: WriteFlags,
    ) -> Result {
        // SAFETY: The shared reference keeps the pages unchanged until dm-io returns, which is
        // when the write has ended, since there is no callback.
        unsafe { self.send(device, Span::at(at, bytes), buffer, flags.bits(), NO_NOTIFY) }
    }

    /// Flushes the device's cache. Sleeps until done.
    ///
    /// # Errors
    ///
    /// `EIO` if the device fails.
    pub(crate) fn flush(&self, device: &Device) -> Result {
        let mut region = sys::dm_io_region {
            bdev: device.bdev(),
            sector: 0,
            count: 0,
        };
        let mut request = sys::dm_io_request {
            bi_opf: bindings::req_op_REQ_OP_WRITE | sys::DMSNAP_REQ_SYNC | sys::DMSNAP_REQ_PREFLUSH,
            mem: sys::dm_io_memory {
                type_: sys::dm_io_mem_type_DM_IO_KMEM,
                offset: 0,
                ptr: sys::dm_io_memory__bindgen_ty_1 {
                    addr: core::ptr::null_mut(),
                },
            },
            notify: NO_NOTIFY,
            client: self.0.as_ptr(),
        };
        let (errors, unsup) = (core::ptr::null_mut(), core::ptr::null_mut());
        // SAFETY: There is no data, hence no memory that would have to live; the device and the
        // client are borrowed until dm-io returns, which is when the flush has ended.
        let ret = unsafe { sys::dm_io(&mut request, 1, &mut region, errors, unsup, 0) };
        kernel::error::to_result(ret)
    }

    /// Hands a request to dm-io.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the range is not in the buffer, `EIO` if a synchronous request fails. With a
    /// callback, an error means that it will not be called.
    ///
    /// # Safety
    ///
    /// Until the request has ended, that is until this returns or the callback is called, the
    /// device, the client and the buffer must live, and nobody may write to the buffer's pages,
    /// nor read them if this is a read. The context must be what the callback expects.
    unsafe fn send(
        &self,
        device: &Device,
        span: Span,
        buffer: &Buffer,
        opf: u32,
        notify: sys::dm_io_notify,
    ) -> Result {
        let Span { at, offset, bytes } = span;
        let end = offset.checked_add(bytes).ok_or(EINVAL)?;
        let is_whole = offset % 512 == 0 && bytes % 512 == 0;
        if bytes == 0 || !is_whole || end > buffer.len() {
            return Err(EINVAL);
        }
        let (list, within) = buffer.list_at(offset).ok_or(EINVAL)?;
        let is_sync = notify.fn_.is_none();
        let mut region = sys::dm_io_region {
            bdev: device.bdev(),
            sector: at.0,
            count: bytes as u64 / 512,
        };
        let mut request = sys::dm_io_request {
            bi_opf: opf,
            mem: sys::dm_io_memory {
                type_: sys::dm_io_mem_type_DM_IO_PAGE_LIST,
                offset: within,
                ptr: sys::dm_io_memory__bindgen_ty_1 { pl: list },
            },
            notify,
            client: self.0.as_ptr(),
        };
        let (mut error, mut unsupported): (c_ulong, c_ulong) = (0, 0);
        let errors = if is_sync {
            &raw mut error
        } else {
            core::ptr::null_mut()
        };
        let unsup = if is_sync {
            &raw mut unsupported
        } else {
            core::ptr::null_mut()
        };
        // SAFETY: dm-io copies the request and the region; all that they point to lives long
        // enough by the requirements of this function.
        let ret = unsafe { sys::dm_io(&mut request, 1, &mut region, errors, unsup, 0) };
        kernel::error::to_result(ret)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: By the invariant the client is alive. Requests under way hold a reference to
        // it, so there are none.
        unsafe { sys::dm_io_client_destroy(self.0.as_ptr()) }
    }
}

/// For requests that are waited for.
const NO_NOTIFY: sys::dm_io_notify = sys::dm_io_notify {
    fn_: None,
    context: core::ptr::null_mut(),
};

/// How a write has to be done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteFlags {
    /// It may stay in the device's cache.
    Data,
    /// It is on stable media before it ends.
    Fua,
}

impl WriteFlags {
    fn bits(self) -> u32 {
        let op = bindings::req_op_REQ_OP_WRITE | sys::DMSNAP_REQ_SYNC;
        match self {
            WriteFlags::Data => op,
            WriteFlags::Fua => op | sys::DMSNAP_REQ_META | sys::DMSNAP_REQ_FUA,
        }
    }
}

/// Who is told that a request has ended.
pub(crate) trait IoDone: Send + Sync + Sized + 'static {
    /// A request has ended.
    ///
    /// Context: any, interrupts included. Must not sleep.
    fn io_done(this: Arc<Self>, finished: Finished<Self>);
}

/// A request that has ended.
pub(crate) struct Finished<T: IoDone> {
    /// What the sender gave along, to know the request by.
    pub(crate) tag: usize,
    /// `EIO` if the device failed.
    pub(crate) result: Result,
    /// The buffer, if the request owned it.
    pub(crate) buffer: Option<Buffer>,
    /// The memory of the request, for the next one.
    pub(crate) request: Request<T>,
}

/// The memory of a request that is still to be sent.
pub(crate) struct Request<T: IoDone>(KBox<Context<T>>);

/// What dm-io carries for us while a request is under way.
struct Context<T: IoDone> {
    sent: Option<Sent<T>>,
}

/// All that must live while a request is under way.
struct Sent<T> {
    done: Arc<T>,
    client: Arc<Client>,
    device: Device,
    memory: Memory,
    tag: usize,
}

/// The memory that a request works on.
enum Memory {
    /// Given away for the time of the request.
    Owned(Buffer),
    /// Read only, by this and perhaps by other requests.
    Shared(Arc<Buffer>),
}

impl Memory {
    fn buffer(&self) -> &Buffer {
        match self {
            Memory::Owned(buffer) => buffer,
            Memory::Shared(buffer) => buffer,
        }
    }
}

/// Where a request goes, and from where in the buffer.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    /// The first sector on the device.
    pub(crate) at: Sector,
    /// The first byte in the buffer.
    pub(crate) offset: usize,
    /// The number of bytes.
    pub(crate) bytes: usize,
}

impl Span {
    /// `bytes` bytes at the sector `at`, from the beginning of the buffer.
    pub(crate) fn at(at: Sector, bytes: usize) -> Self {
        Self {
            at,
            offset: 0,
            bytes,
        }
    }
}

impl<T: IoDone> Request<T> {
    /// Gets the memory for a request.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. Context: whatever `flags` allow.
    pub(crate) fn new(flags: Flags) -> Result<Self> {
        Ok(Self(KBox::new(Context { sent: None }, flags)?))
    }

    /// Reads into `buffer`, which comes back when the read has ended.
    ///
    /// `done` is told of the end, of a failure too, possibly before this returns.
    /// Context: may sleep for a pool of dm-io.
    pub(crate) fn read(
        self,
        client: &Arc<Client>,
        device: &Device,
        span: Span,
        buffer: Buffer,
        done: Arc<T>,
        tag: usize,
    ) {
        let is_writable = buffer.is_writable();
        let opf = bindings::req_op_REQ_OP_READ | sys::DMSNAP_REQ_SYNC;
        let memory = Memory::Owned(buffer);
        self.go(client, device, span, memory, is_writable, opf, done, tag);
    }

    /// Writes from `buffer`, which comes back when the write has ended.
    ///
    /// `done` is told of the end, of a failure too, possibly before this returns.
    /// Context: may sleep for a pool of dm-io.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn write(
        self,
        client: &Arc<Client>,
        device: &Device,
        span: Span,
        buffer: Buffer,
        flags: WriteFlags,
        done: Arc<T>,
        tag: usize,
    ) {
        let memory = Memory::Owned(buffer);
        self.go(client, device, span, memory, true, flags.bits(), done, tag);
    }

    /// As [`Self::write`], from a buffer that other writes share.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn write_shared(
        self,
        client: &Arc<Client>,
        device: &Device,
        span: Span,
        buffer: &Arc<Buffer>,
        flags: WriteFlags,
        done: Arc<T>,
        tag: usize,
    ) {
        let memory = Memory::Shared(buffer.clone());
        self.go(client, device, span, memory, true, flags.bits(), done, tag);
    }

    #[allow(clippy::too_many_arguments)]
    fn go(
        mut self,
        client: &Arc<Client>,
        device: &Device,
        span: Span,
        memory: Memory,
        is_allowed: bool,
        opf: u32,
        done: Arc<T>,
        tag: usize,
    ) {
        let sent = self.0.sent.insert(Sent {
            done,
            client: client.clone(),
            device: device.clone(),
            memory,
            tag,
        });
        let buffer = core::ptr::from_ref(sent.memory.buffer());
        let context = KBox::into_raw(self.0);
        let notify = sys::dm_io_notify {
            fn_: Some(Context::<T>::notify),
            context: context.cast(),
        };
        let result = if is_allowed {
            // SAFETY: The context is alive until the callback frees it, which can't come before
            // dm-io has got the request.
            let buffer = unsafe { &*buffer };
            // SAFETY: The context owns or shares the buffer and holds references to the client
            // and the device until the callback, which gets the very context that it expects.
            unsafe { client.send(device, span, buffer, opf, notify) }
        } else {
            Err(EINVAL)
        };
        if result.is_err() {
            // SAFETY: dm-io did not take the request, so the context is still ours.
            unsafe { Context::<T>::end(context, result) };
        }
    }
}

impl<T: IoDone> Context<T> {
    /// dm-io's callback.
    ///
    /// # Safety
    ///
    /// `context` must be a `KBox<Context<T>>` given away by `into_raw`, and nobody may use it
    /// after this.
    unsafe extern "C" fn notify(error: c_ulong, unsup: c_ulong, context: *mut c_void) {
        let result = if (error | unsup) == 0 {
            Ok(())
        } else {
            Err(EIO)
        };
        // SAFETY: The requirements are the same.
        unsafe { Self::end(context.cast(), result) }
    }

    /// Tells of the end and frees the context.
    ///
    /// # Safety
    ///
    /// As for [`Self::notify`].
    unsafe fn end(context: *mut Self, result: Result) {
        // SAFETY: By the requirements, we own the box.
        let mut context = unsafe { KBox::from_raw(context) };
        let Some(sent) = context.sent.take() else {
            return;
        };
        let Sent {
            done,
            client,
            device,
            memory,
            tag,
        } = sent;
        let buffer = match memory {
            Memory::Owned(buffer) => Some(buffer),
            Memory::Shared(shared) => {
                drop(shared);
                None
            }
        };
        let finished = Finished {
            tag,
            result,
            buffer,
            request: Request(context),
        };
        T::io_done(done, finished);
        // Once the device has been let go of, its target can be destroyed, so this comes last. The
        // module waits for tasks that have not returned from here before it goes.
        drop(client);
        drop(device);
    }
}
