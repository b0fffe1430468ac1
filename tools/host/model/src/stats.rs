// SPDX-License-Identifier: GPL-2.0

//! What is counted: nothing.

/// A moment.
#[derive(Clone, Copy)]
pub(crate) struct Moment;

impl Moment {
    pub(crate) fn now() -> Self {
        Self
    }
}

/// A number that nobody reads.
pub(crate) struct Counter;

impl Counter {
    pub(crate) fn add(&self, _n: u64) {}
}

/// Of a snapshot.
pub(crate) struct SnapStats {
    pub(crate) conflicts: Counter,
    pub(crate) own_runs: Counter,
    pub(crate) own_chunks: Counter,
}

impl SnapStats {
    pub(crate) fn new() -> Self {
        Self {
            conflicts: Counter,
            own_runs: Counter,
            own_chunks: Counter,
        }
    }
}
