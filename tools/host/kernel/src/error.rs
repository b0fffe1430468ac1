// SPDX-License-Identifier: GPL-2.0

//! Error codes, as in the kernel's `error.rs`.

use crate::alloc::{AllocError, InsertError, PushError, RemoveError};
use core::num::NonZeroI32;

/// An error code of the kernel, held as a negative number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error(NonZeroI32);

/// A result whose error is a kernel error code unless something else is said.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

impl Error {
    const fn new(errno: i32) -> Self {
        match NonZeroI32::new(-errno) {
            Some(code) => Self(code),
            None => panic!("zero is no error"),
        }
    }

    /// The code as C sees it: negative.
    pub fn to_errno(self) -> i32 {
        self.0.get()
    }
}

impl core::fmt::Debug for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Error({})", self.0)
    }
}

/// The error codes by name.
pub mod code {
    use super::Error;

    macro_rules! declare {
        ($($name:ident = $value:literal,)*) => {
            $(#[doc = stringify!($name)] pub const $name: Error = Error::new($value);)*
        };
    }

    declare! {
        EPERM = 1,
        ENOENT = 2,
        EINTR = 4,
        EIO = 5,
        ENXIO = 6,
        E2BIG = 7,
        EAGAIN = 11,
        ENOMEM = 12,
        EBUSY = 16,
        EEXIST = 17,
        ENODEV = 19,
        EINVAL = 22,
        EFBIG = 27,
        ENOSPC = 28,
        EROFS = 30,
        ERANGE = 34,
        EOVERFLOW = 75,
        EOPNOTSUPP = 95,
    }
}

impl From<AllocError> for Error {
    fn from(_: AllocError) -> Self {
        code::ENOMEM
    }
}

impl<T> From<PushError<T>> for Error {
    fn from(_: PushError<T>) -> Self {
        code::EINVAL
    }
}

impl From<RemoveError> for Error {
    fn from(_: RemoveError) -> Self {
        code::EINVAL
    }
}

impl<T> From<InsertError<T>> for Error {
    fn from(_: InsertError<T>) -> Self {
        code::EINVAL
    }
}

impl From<core::num::TryFromIntError> for Error {
    fn from(_: core::num::TryFromIntError) -> Self {
        code::EINVAL
    }
}

impl From<core::fmt::Error> for Error {
    fn from(_: core::fmt::Error) -> Self {
        code::EINVAL
    }
}
