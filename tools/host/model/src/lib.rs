// SPDX-License-Identifier: GPL-2.0

//! The module's decisions of who may go, under all interleavings of those who ask.
//!
//! What decides is the very source of the module: `pending.rs`, `slot.rs`, `saving.rs`,
//! `route.rs` and `exception.rs`. What they stand on is made anew here, with locks and atomics of
//! loom, which runs a test once for each order in which threads can take them:
//!
//! - `dm.rs`: bios, which can't be lost or ended twice unseen;
//! - `registry.rs`, `live.rs`, `commit.rs`, `copy.rs`: the steps of the files of these names, in
//!   their order and with their locks, but without memory that runs short, without errors but for
//!   one that a test asks for, and without a size of anything but the snapshots;
//! - `world.rs`: the devices, the workqueue, and the rules that are watched over.
//!
//! A bio is a thread of its own until it has ended or waits. Between the moment at which it is
//! mapped and the one at which the device does what it asks for, anything else may happen.

#![deny(unsafe_code)]
// What the module's other files use is not used here.
#![allow(dead_code)]

mod commit;
mod copy;
mod dm;
mod live;
mod registry;
mod room;
pub mod scenario;
mod stats;
mod store;
mod world;
mod zero;

#[path = "../../../../exception.rs"]
mod exception;
#[path = "../../../../pending.rs"]
mod pending;
#[path = "../../../../route.rs"]
mod route;
#[path = "../../../../saving.rs"]
mod saving;
#[path = "../../../../slot.rs"]
mod slot;
#[path = "../../../../table.rs"]
mod table;
#[path = "../../../../units.rs"]
mod units;
