// SPDX-License-Identifier: GPL-2.0

//! The COW device of the model is never full.

/// What becomes of a write that needs room: see the module's file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    GivenUp,
    Queued,
    Refused,
}

/// What a snapshot knows of the room on its COW device.
pub(crate) struct Room;

impl Room {
    pub(crate) fn note_full(&self, _sectors: u64) {}

    pub(crate) fn refuses(&self) -> bool {
        false
    }
}
