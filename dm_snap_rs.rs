// SPDX-License-Identifier: GPL-2.0

//! Device-mapper snapshots in Rust.
//!
//! # Layers
//!
//! Calls go downwards only, but for what ends: that comes up again by work items and lists.
//!
//! ```text
//! snapshot.rs origin.rs    the targets: table lines, the way of an origin bio
//! route.rs                 the way of a snapshot bio
//! registry.rs              real origins: their slots, snapshots and origin targets
//! live.rs commit.rs        a live snapshot: its health, its group commit
//! copy.rs                  the copy engine: one read, many writes
//! slot.rs                  what the spans of one lock hold: who waits, who may go
//! pending.rs               what is in flight                                        pure
//! exception.rs             the completed table                                      pure
//! store/                   where data lies on the COW device, and its metadata
//!   format.rs area.rs      the format, and the decisions about areas and free chunks    pure
//! table.rs units.rs        arguments and texts; sectors and chunks                  pure
//! dm/ sys/                 safe wrappers of the kernel's C interfaces; the raw ones
//! ```
//!
//! # Lock order
//!
//! From the outside to the inside; a lock may be taken while those above it are held.
//!
//! 1. device-mapper's suspend lock of a snapshot's device, then that of an origin's;
//! 2. `Registry::origins`, then `Origin::snapshots`, then `Origin::members`;
//! 3. `Live::tenure`, then the target of a `dm::Handle`;
//! 4. a slot of `Origin::slots`: never two at a time;
//! 5. `Live::commit`;
//! 6. `Origin::throttled`, then `Live::throttled`;
//! 7. the state of a store, `Live::ready`, `Origin::ready`, `Live::busy`, `Live::devices`,
//!    `Copy::state`: one at a time, with nothing inside.
//!
//! The locks from 4 on are spinlocks taken with interrupts off, since bios end in interrupts.

use kernel::{prelude::*, sync::Arc};

mod commit;
mod copy;
mod dm;
mod exception;
mod live;
mod origin;
mod pending;
mod registry;
mod route;
mod slot;
mod snapshot;
mod store;
mod sys;
mod table;
mod units;

use dm::Registration;
use origin::OriginTarget;
use registry::Registry;
use snapshot::SnapshotTarget;

module! {
    type: DmSnapRs,
    name: "dm_snap_rs",
    authors: ["The snapshot-rs developers"],
    description: "device-mapper snapshot targets in Rust",
    license: "GPL",
}

/// The loaded module: its targets are registered as long as it exists.
#[pin_data(PinnedDrop)]
struct DmSnapRs {
    #[pin]
    snapshot: Registration<SnapshotTarget>,
    #[pin]
    origin: Registration<OriginTarget>,
    registry: Arc<Registry>,
}

impl kernel::InPlaceModule for DmSnapRs {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let registry = Registry::new();
        pin_init::pin_init_scope(move || {
            let registry = registry?;
            Ok(try_pin_init!(Self {
                snapshot <- Registration::new(module, registry.clone()),
                origin <- Registration::new(module, registry.clone()),
                registry,
            }? Error))
        })
    }
}

#[pinned_drop]
impl PinnedDrop for DmSnapRs {
    fn drop(self: Pin<&mut Self>) {
        // No table uses the targets any more, or the module could not be unloaded; but the last
        // work item of a snapshot may still be on its way out.
        self.registry.wq.drain();
    }
}
