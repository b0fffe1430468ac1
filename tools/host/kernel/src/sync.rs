// SPDX-License-Identifier: GPL-2.0

//! Locks and shared values, as in the kernel's `sync`.

use core::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

pub use std::sync::Arc;

/// A spinlock that keeps interrupts out. On the host: a lock.
pub struct SpinLockIrq<T>(Mutex<T>);

/// A locked lock.
pub struct Guard<'a, T>(MutexGuard<'a, T>);

impl<T> SpinLockIrq<T> {
    /// A lock around a value. Called by [`new_spinlock_irq!`](crate::new_spinlock_irq).
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Locks it.
    ///
    /// # Panics
    ///
    /// If a thread panicked with the lock held.
    pub fn lock(&self) -> Guard<'_, T> {
        Guard(self.0.lock().expect("nobody panics with the lock held"))
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// A lock around a value.
#[macro_export]
macro_rules! new_spinlock_irq {
    ($value:expr, $name:literal) => {
        $crate::sync::SpinLockIrq::new($value)
    };
}
