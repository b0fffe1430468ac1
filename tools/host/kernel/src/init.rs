// SPDX-License-Identifier: GPL-2.0

//! Initialisers, as in the kernel's `pin_init`. On the host nothing depends on where a value
//! lies, so it is made and then moved to its place.

use crate::alloc::{Allocator, Box, Flags};
use crate::error::Error;
use core::pin::Pin;

/// Makes a value of `T` in its place.
pub trait PinInit<T> {
    /// Makes it.
    fn make(self) -> T;
}

/// What [`pin_init!`](crate::pin_init) makes.
pub struct Init<F>(F);

impl<F> Init<F> {
    /// An initialiser that calls `make`.
    pub fn new<T>(make: F) -> Self
    where
        F: FnOnce() -> T,
    {
        Self(make)
    }
}

impl<T, F: FnOnce() -> T> PinInit<T> for Init<F> {
    fn make(self) -> T {
        (self.0)()
    }
}

impl<T: Unpin, A: Allocator> Box<T, A> {
    /// A pinned box that holds what `init` makes.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn pin_init(init: impl PinInit<T>, flags: Flags) -> Result<Pin<Self>, Error> {
        Ok(Pin::new(Self::new(init.make(), flags)?))
    }
}

/// An initialiser of a structure, field by field.
#[macro_export]
macro_rules! pin_init {
    ($t:ident { $($fields:tt)* }) => {
        $crate::init::Init::new(move || $crate::pin_init_fields!($t {} $($fields)*))
    };
}

/// The fields of [`pin_init!`], one after the other.
#[doc(hidden)]
#[macro_export]
macro_rules! pin_init_fields {
    ($t:ident { $($done:tt)* }) => { $t { $($done)* } };
    ($t:ident { $($done:tt)* } $field:ident <- $value:expr, $($rest:tt)*) => {
        $crate::pin_init_fields!($t { $($done)* $field: $value, } $($rest)*)
    };
    ($t:ident { $($done:tt)* } $field:ident: $value:expr, $($rest:tt)*) => {
        $crate::pin_init_fields!($t { $($done)* $field: $value, } $($rest)*)
    };
    ($t:ident { $($done:tt)* } $field:ident, $($rest:tt)*) => {
        $crate::pin_init_fields!($t { $($done)* $field, } $($rest)*)
    };
}
