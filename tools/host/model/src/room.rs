// SPDX-License-Identifier: GPL-2.0

//! The COW device of the model is never full.

/// What becomes of a write that needs room: see the module's file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    GivenUp,
    Queued,
    Refused,
}
