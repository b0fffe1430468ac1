// SPDX-License-Identifier: GPL-2.0

//! The module's files that need no kernel, compiled unchanged on the host: the pure ones, and the
//! store.
//!
//! They are the very sources that the kernel module is built from; what they use of the
//! kernel comes from the stand-in crate beside this one, and what the store uses of the
//! module's `dm` from `dm.rs` and `many.rs` here. The tests are in [`tests`].
//!
//! [`image`] drives the store over whole images of COW devices, [`naive`] says by the format
//! alone what must come of that; [`line`](mod@line) does both for table lines and messages. The fuzzers
//! and the test of damaged images use them.

#![deny(unsafe_code)]
// What the module's other files use is not used here.
#![allow(dead_code)]

mod dm;
pub mod image;
pub mod line;
mod many;
pub mod naive;

#[path = "../../../../exception.rs"]
mod exception;
#[path = "../../../../pending.rs"]
mod pending;
#[path = "../../../../store/mod.rs"]
mod store;
#[path = "../../../../table.rs"]
mod table;
#[path = "../../../../units.rs"]
mod units;

#[cfg(test)]
mod tests;
