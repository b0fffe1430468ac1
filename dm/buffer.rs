// SPDX-License-Identifier: GPL-2.0

//! The pages that dm-io reads into and writes from.

use crate::sys;
use kernel::{
    alloc::Flags,
    page::{Page, PAGE_SIZE},
    prelude::*,
};

/// Memory for I/O: single pages, strung together in the way that dm-io wants them.
///
/// # Invariants
///
/// - `nodes` form a list in their order, the last one has no successor;
/// - each node's page is the one of the same index in `pages`, or the kernel's zero page if
///   `pages` is empty;
/// - `nodes` is never changed again, so that its elements don't move.
pub(crate) struct Buffer {
    pages: KVec<Page>,
    nodes: KVec<sys::page_list>,
}

// SAFETY: The pages belong to the buffer, the zero page to nobody; neither is tied to a task.
unsafe impl Send for Buffer {}
// SAFETY: Through a shared reference a buffer can only be read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer of no bytes; allocates nothing.
    pub(crate) const fn empty() -> Self {
        // INVARIANT: There are no nodes.
        Self {
            pages: KVec::new(),
            nodes: KVec::new(),
        }
    }

    /// A buffer of at least `bytes` bytes, whose content is not defined.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. Context: whatever `flags` allow.
    pub(crate) fn new(bytes: usize, flags: Flags) -> Result<Self> {
        let count = bytes.div_ceil(PAGE_SIZE);
        let mut pages = KVec::with_capacity(count, flags)?;
        for _ in 0..count {
            pages.push(Page::alloc_page(flags)?, flags)?;
        }
        let raw = |i: usize| pages.get(i).map_or(core::ptr::null_mut(), Page::as_ptr);
        let nodes = Self::string(count, raw, flags)?;
        // INVARIANT: `string` has made the list from these very pages.
        Ok(Self { pages, nodes })
    }

    /// A buffer of at least `bytes` zeroes, to be written from. It takes no page of its own.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. Context: whatever `flags` allow.
    pub(crate) fn zeroes(bytes: usize, flags: Flags) -> Result<Self> {
        // SAFETY: There are no preconditions.
        let zero = unsafe { sys::dmsnap_zero_page() };
        let nodes = Self::string(bytes.div_ceil(PAGE_SIZE), |_| zero, flags)?;
        // INVARIANT: `string` has made the list, each node has the zero page.
        Ok(Self {
            pages: KVec::new(),
            nodes,
        })
    }

    /// Makes a list of `count` nodes, each with the page that `page` gives for its index.
    fn string(
        count: usize,
        page: impl Fn(usize) -> *mut kernel::bindings::page,
        flags: Flags,
    ) -> Result<KVec<sys::page_list>> {
        let mut nodes = KVec::with_capacity(count, flags)?;
        for i in 0..count {
            let node = sys::page_list {
                next: core::ptr::null_mut(),
                page: page(i),
            };
            nodes.push(node, flags)?;
        }
        let mut next = core::ptr::null_mut();
        for node in nodes.iter_mut().rev() {
            node.next = next;
            next = node;
        }
        Ok(nodes)
    }

    /// The size in bytes: whole pages.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len() * PAGE_SIZE
    }

    /// Whether a device may write to it: the zero page must stay zero.
    pub(super) fn is_writable(&self) -> bool {
        !self.pages.is_empty()
    }

    /// The list from the page in which the byte `offset` lies, and how far into that page.
    ///
    /// The pointer is valid as long as the buffer. `None` if `offset` is not in the buffer.
    pub(super) fn list_at(&self, offset: usize) -> Option<(*mut sys::page_list, u32)> {
        let node = self.nodes.get(offset / PAGE_SIZE)?;
        let within = (offset % PAGE_SIZE) as u32;
        Some((core::ptr::from_ref(node).cast_mut(), within))
    }

    /// Copies `data` into the buffer, from the byte `offset` on.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it does not fit, or if this is a buffer of zeroes.
    pub(crate) fn write(&mut self, mut offset: usize, mut data: &[u8]) -> Result {
        while !data.is_empty() {
            let page = self.pages.get(offset / PAGE_SIZE).ok_or(EINVAL)?;
            let within = offset % PAGE_SIZE;
            let (now, rest) = data.split_at(data.len().min(PAGE_SIZE - within));
            // SAFETY: `now` is valid for reads of its length; the exclusive reference to the
            // buffer keeps all others from its pages, devices included, since I/O owns or shares
            // the buffer while it is under way.
            unsafe { page.write_raw(now.as_ptr(), within, now.len())? };
            offset += now.len();
            data = rest;
        }
        Ok(())
    }

    /// Sets `len` bytes from `offset` on to zero.
    ///
    /// # Errors
    ///
    /// `EINVAL` if they are not in the buffer, or if this is a buffer of zeroes.
    pub(crate) fn clear(&mut self, mut offset: usize, mut len: usize) -> Result {
        while len > 0 {
            let page = self.pages.get(offset / PAGE_SIZE).ok_or(EINVAL)?;
            let within = offset % PAGE_SIZE;
            let now = len.min(PAGE_SIZE - within);
            // SAFETY: The exclusive reference keeps all others from the pages, see `write`.
            unsafe { page.fill_zero_raw(within, now)? };
            offset += now;
            len -= now;
        }
        Ok(())
    }

    /// Copies from the buffer, from the byte `offset` on, until `out` is full.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the buffer ends before, or if this is a buffer of zeroes.
    pub(crate) fn read(&self, mut offset: usize, mut out: &mut [u8]) -> Result {
        while !out.is_empty() {
            let page = self.pages.get(offset / PAGE_SIZE).ok_or(EINVAL)?;
            let within = offset % PAGE_SIZE;
            let (now, rest) = out.split_at_mut(out.len().min(PAGE_SIZE - within));
            // SAFETY: `now` is valid for writes of its length; nobody writes to the pages while
            // a shared reference to the buffer exists, since a read by a device owns the buffer.
            unsafe { page.read_raw(now.as_mut_ptr(), within, now.len())? };
            offset += now.len();
            out = rest;
        }
        Ok(())
    }
}
