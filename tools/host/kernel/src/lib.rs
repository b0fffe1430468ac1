// SPDX-License-Identifier: GPL-2.0

//! A stand-in for the `kernel` crate, so that the module's pure files compile on the host.
//!
//! It has the names, signatures and limits of what those files use, no more: what is not
//! here is either not in the kernel or not yet needed. Two things go further than the
//! kernel, for the tests' sake:
//!
//! - [`host::fail`] makes allocations fail, so that every path on which memory is short can
//!   be walked;
//! - [`host::live_bytes`] counts the memory in use as the kernel's slab allocator would
//!   hand it out, so that goals set in bytes can be tested.

#![deny(unsafe_code)]

pub mod alloc;
pub mod error;
pub mod host;
pub mod init;
pub mod sync;

/// Formatting: on the host `core::fmt` itself, which has the same names.
pub mod fmt {
    pub use core::fmt::*;
}

/// What every file of the module gets by `use kernel::prelude::*`.
pub mod prelude {
    pub use crate::alloc::flags::*;
    pub use crate::alloc::{Box, KBox, KVBox, KVVec, KVec, Vec};
    pub use crate::error::{code::*, Error, Result};
    pub use crate::init::PinInit;
    pub use crate::{pin_init, pr_debug, pr_err, pr_info, pr_notice, pr_warn};
    pub use core::ffi::CStr;
    pub use core::mem::{align_of, align_of_val, size_of, size_of_val};
    pub use core::pin::Pin;
    pub use macros::pin_data;
}

/// Log lines go to the standard error of the test.
#[macro_export]
macro_rules! pr_err {
    ($($arg:tt)*) => { ::std::eprint!($($arg)*) };
}

/// Log lines go to the standard error of the test.
#[macro_export]
macro_rules! pr_warn {
    ($($arg:tt)*) => { ::std::eprint!($($arg)*) };
}

/// Log lines go to the standard error of the test.
#[macro_export]
macro_rules! pr_notice {
    ($($arg:tt)*) => { ::std::eprint!($($arg)*) };
}

/// Log lines go to the standard error of the test.
#[macro_export]
macro_rules! pr_info {
    ($($arg:tt)*) => { ::std::eprint!($($arg)*) };
}

/// Log lines go to the standard error of the test.
#[macro_export]
macro_rules! pr_debug {
    ($($arg:tt)*) => { ::std::eprint!($($arg)*) };
}
