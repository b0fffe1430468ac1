// SPDX-License-Identifier: GPL-2.0

//! Vectors and boxes that may fail to allocate, as in the kernel's `alloc`.

use crate::host;
use core::fmt;
use core::marker::PhantomData;
use core::mem::size_of;
use core::ops::{Deref, DerefMut};

/// There is no memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocError;

/// How memory may be allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flags(u32);

impl Flags {
    /// Whether all of `flags` are set.
    pub fn contains(self, flags: Flags) -> bool {
        self.0 & flags.0 == flags.0
    }

    fn may_sleep(self) -> bool {
        self.contains(flags::GFP_KERNEL)
    }
}

impl core::ops::BitOr for Flags {
    type Output = Self;
    fn bitor(self, rhs: Self) -> Self::Output {
        Self(self.0 | rhs.0)
    }
}

impl core::ops::BitAnd for Flags {
    type Output = Self;
    fn bitand(self, rhs: Self) -> Self::Output {
        Self(self.0 & rhs.0)
    }
}

/// The allocation flags that the kernel crate has. There is no `GFP_NOIO` in it: code that
/// must not wait for I/O uses `GFP_KERNEL` inside a `memalloc_noio_save` section.
pub mod flags {
    use super::Flags;

    /// Never sleeps, may use the reserves.
    pub const GFP_ATOMIC: Flags = Flags(1);
    /// May sleep and may start I/O.
    pub const GFP_KERNEL: Flags = Flags(2);
    /// As `GFP_KERNEL`, with accounting.
    pub const GFP_KERNEL_ACCOUNT: Flags = Flags(2 | 4);
    /// Never sleeps, often fails.
    pub const GFP_NOWAIT: Flags = Flags(8);
    /// Zeroed memory.
    pub const __GFP_ZERO: Flags = Flags(16);
    /// No report when it fails.
    pub const __GFP_NOWARN: Flags = Flags(32);
}

/// Who hands out the memory.
pub trait Allocator {
    /// What is really handed out for a request of `bytes`.
    fn granted(bytes: usize) -> usize;
}

/// `kmalloc`.
#[derive(Debug)]
pub struct Kmalloc;

/// `kvmalloc`: `kmalloc`, or whole pages where that is too much in one piece.
#[derive(Debug)]
pub struct KVmalloc;

impl Allocator for Kmalloc {
    fn granted(bytes: usize) -> usize {
        host::bucket(bytes)
    }
}

impl Allocator for KVmalloc {
    fn granted(bytes: usize) -> usize {
        if bytes > 32768 {
            bytes.next_multiple_of(4096)
        } else {
            host::bucket(bytes)
        }
    }
}

/// A vector with the kernel's interface: it grows only where flags are given.
pub struct Vec<T, A: Allocator> {
    items: std::vec::Vec<T>,
    capacity: usize,
    _allocator: PhantomData<A>,
}

/// A vector from `kmalloc`.
pub type KVec<T> = Vec<T, Kmalloc>;

/// A vector from `kvmalloc`.
pub type KVVec<T> = Vec<T, KVmalloc>;

/// The vector is full; the value comes back.
pub struct PushError<T>(pub T);

/// There is nothing at that index.
pub struct RemoveError;

/// Why a value could not be inserted; it comes back.
pub enum InsertError<T> {
    /// The index lies behind the end.
    IndexOutOfBounds(T),
    /// The vector is full.
    OutOfCapacity(T),
}

impl<T> fmt::Debug for PushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Not enough capacity")
    }
}

impl fmt::Debug for RemoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Index out of bounds")
    }
}

impl<T> fmt::Debug for InsertError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InsertError::IndexOutOfBounds(_) => write!(f, "Index out of bounds"),
            InsertError::OutOfCapacity(_) => write!(f, "Not enough capacity"),
        }
    }
}

/// Vectors have these in modules of the same names in the kernel.
pub mod kvec {
    pub use super::{InsertError, KVVec, KVec, PushError, RemoveError, Vec};
}

impl<T, A: Allocator> Vec<T, A> {
    /// An empty vector; allocates nothing.
    pub const fn new() -> Self {
        Self {
            items: std::vec::Vec::new(),
            capacity: 0,
            _allocator: PhantomData,
        }
    }

    /// An empty vector with room for `capacity` elements.
    pub fn with_capacity(capacity: usize, flags: Flags) -> Result<Self, AllocError> {
        let mut v = Self::new();
        v.reserve(capacity, flags)?;
        Ok(v)
    }

    /// `n` times `value`.
    pub fn from_elem(value: T, n: usize, flags: Flags) -> Result<Self, AllocError>
    where
        T: Clone,
    {
        let mut v = Self::with_capacity(n, flags)?;
        v.extend_with(n, value, flags)?;
        Ok(v)
    }

    /// How many elements fit without another allocation.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// All elements.
    pub fn as_slice(&self) -> &[T] {
        self
    }

    /// All elements.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        self
    }

    fn account(&mut self, capacity: usize) {
        host::freed(A::granted(self.capacity * size_of::<T>()));
        host::allocated(A::granted(capacity * size_of::<T>()));
        self.capacity = capacity;
    }

    /// Makes room for `additional` more elements.
    pub fn reserve(&mut self, additional: usize, flags: Flags) -> Result<(), AllocError> {
        let (len, cap) = (self.len(), self.capacity);
        if cap - len >= additional {
            return Ok(());
        }
        let wanted = core::cmp::max(cap * 2, len.checked_add(additional).ok_or(AllocError)?);
        if wanted
            .checked_mul(size_of::<T>().max(1))
            .is_none_or(|b| b > isize::MAX as usize)
        {
            return Err(AllocError);
        }
        if !host::allowed(flags.may_sleep()) {
            return Err(AllocError);
        }
        self.items.reserve_exact(wanted - len);
        self.account(wanted);
        Ok(())
    }

    /// Appends an element.
    pub fn push(&mut self, v: T, flags: Flags) -> Result<(), AllocError> {
        self.reserve(1, flags)?;
        self.items.push(v);
        Ok(())
    }

    /// Appends an element if there is room.
    pub fn push_within_capacity(&mut self, v: T) -> Result<(), PushError<T>> {
        if self.len() >= self.capacity {
            return Err(PushError(v));
        }
        self.items.push(v);
        Ok(())
    }

    /// Inserts an element if there is room.
    pub fn insert_within_capacity(
        &mut self,
        index: usize,
        element: T,
    ) -> Result<(), InsertError<T>> {
        if index > self.len() {
            return Err(InsertError::IndexOutOfBounds(element));
        }
        if self.len() >= self.capacity {
            return Err(InsertError::OutOfCapacity(element));
        }
        self.items.insert(index, element);
        Ok(())
    }

    /// Takes the last element off.
    pub fn pop(&mut self) -> Option<T> {
        self.items.pop()
    }

    /// Takes an element out.
    pub fn remove(&mut self, i: usize) -> Result<T, RemoveError> {
        if i >= self.len() {
            return Err(RemoveError);
        }
        Ok(self.items.remove(i))
    }

    /// Keeps the first `len` elements. The capacity stays.
    pub fn truncate(&mut self, len: usize) {
        self.items.truncate(len);
    }

    /// Drops all elements. The capacity stays.
    pub fn clear(&mut self) {
        self.items.clear();
    }

    /// Takes all elements out. The capacity stays.
    pub fn drain_all(&mut self) -> std::vec::Drain<'_, T> {
        self.items.drain(..)
    }

    /// Keeps the elements for which `f` is true.
    pub fn retain(&mut self, f: impl FnMut(&mut T) -> bool) {
        self.items.retain_mut(f);
    }

    /// Appends clones of all of `other`.
    pub fn extend_from_slice(&mut self, other: &[T], flags: Flags) -> Result<(), AllocError>
    where
        T: Clone,
    {
        self.reserve(other.len(), flags)?;
        self.items.extend_from_slice(other);
        Ok(())
    }

    /// Appends `n` times `value`.
    pub fn extend_with(&mut self, n: usize, value: T, flags: Flags) -> Result<(), AllocError>
    where
        T: Clone,
    {
        self.reserve(n, flags)?;
        let len = self.len();
        self.items.resize(len + n, value);
        Ok(())
    }

    /// Makes the length `new_len`; what is added is `value`.
    pub fn resize(&mut self, new_len: usize, value: T, flags: Flags) -> Result<(), AllocError>
    where
        T: Clone,
    {
        match new_len.checked_sub(self.len()) {
            Some(more) => self.extend_with(more, value, flags),
            None => {
                self.truncate(new_len);
                Ok(())
            }
        }
    }
}

impl<T> KVVec<T> {
    /// Gives back what is above both the length and `min_capacity`.
    pub fn shrink_to(&mut self, min_capacity: usize, flags: Flags) -> Result<(), AllocError> {
        let target = core::cmp::max(self.len(), min_capacity);
        if self.capacity <= target {
            return Ok(());
        }
        if !host::allowed(flags.may_sleep()) {
            return Err(AllocError);
        }
        self.items.shrink_to(target);
        self.account(target);
        Ok(())
    }
}

impl<T, A: Allocator> Drop for Vec<T, A> {
    fn drop(&mut self) {
        host::freed(A::granted(self.capacity * size_of::<T>()));
    }
}

impl<T, A: Allocator> Default for Vec<T, A> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: fmt::Debug, A: Allocator> fmt::Debug for Vec<T, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.items, f)
    }
}

impl<T, A: Allocator> Deref for Vec<T, A> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<T, A: Allocator> DerefMut for Vec<T, A> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.items
    }
}

impl<'a, T, A: Allocator> IntoIterator for &'a Vec<T, A> {
    type Item = &'a T;
    type IntoIter = core::slice::Iter<'a, T>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, T, A: Allocator> IntoIterator for &'a mut Vec<T, A> {
    type Item = &'a mut T;
    type IntoIter = core::slice::IterMut<'a, T>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

impl<T, A: Allocator> IntoIterator for Vec<T, A> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;
    fn into_iter(mut self) -> Self::IntoIter {
        core::mem::take(&mut self.items).into_iter()
    }
}

impl<T: PartialEq, A: Allocator> PartialEq for Vec<T, A> {
    fn eq(&self, other: &Self) -> bool {
        self.items == other.items
    }
}

impl<T: Eq, A: Allocator> Eq for Vec<T, A> {}

/// A box with the kernel's interface.
pub struct Box<T, A: Allocator> {
    inner: std::boxed::Box<T>,
    account: Account<A>,
}

/// Counts the memory of one box.
struct Account<A: Allocator>(usize, PhantomData<A>);

impl<A: Allocator> Drop for Account<A> {
    fn drop(&mut self) {
        host::freed(A::granted(self.0));
    }
}

/// A box from `kmalloc`.
pub type KBox<T> = Box<T, Kmalloc>;

/// A box from `kvmalloc`.
pub type KVBox<T> = Box<T, KVmalloc>;

impl<T, A: Allocator> Box<T, A> {
    /// A box that holds `x`.
    pub fn new(x: T, flags: Flags) -> Result<Self, AllocError> {
        if size_of::<T>() != 0 && !host::allowed(flags.may_sleep()) {
            return Err(AllocError);
        }
        host::allocated(A::granted(size_of::<T>()));
        Ok(Self {
            inner: std::boxed::Box::new(x),
            account: Account(size_of::<T>(), PhantomData),
        })
    }

    /// Takes the value out.
    pub fn into_inner(b: Self) -> T {
        let Self { inner, account } = b;
        drop(account);
        *inner
    }
}

impl<T, A: Allocator> Deref for Box<T, A> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T, A: Allocator> DerefMut for Box<T, A> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: fmt::Debug, A: Allocator> fmt::Debug for Box<T, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.inner, f)
    }
}
