// SPDX-License-Identifier: GPL-2.0

//! Device-mapper snapshots in Rust.
//!
//! # Layers
//!
//! Calls go downwards only, but for what ends: that comes up again by work items and lists.
//!
//! ```text
//! origin.rs                the target of the live volume, and the way of its bios
//! snapshot.rs route.rs     the target of the frozen image, and the way of its bios
//! merge.rs                 the target that brings it back, and the way of its bios
//! tenant.rs                a table line's part in a snapshot: activation, takeover, status
//! saving.rs                before the origin is written to: what is changed, is saved
//! merger.rs                how exceptions go back to the origin
//! registry.rs              real origins: their slots, snapshots and origin targets
//! live.rs commit.rs        a live snapshot: its health, its group commit
//! room.rs                  what happens when a COW device is full, or nearly
//! copy.rs zero.rs many.rs  I/O of the module's own: copies, discards, all that is waited for
//! slot.rs                  what the spans of one lock hold: who waits, who may go
//! pending.rs               what is in flight                                        pure
//! exception.rs             the completed table                                      pure
//! store/                   where data lies on the COW device, and its metadata
//!   format.rs area.rs      the format, and the decisions about areas and free chunks    pure
//! stats.rs                 what is counted
//! table.rs units.rs        arguments and texts; sectors and chunks                  pure
//! dm/ sys/                 safe wrappers of the kernel's C interfaces; the raw ones
//! ```
//!
//! # Lock order
//!
//! From the outside to the inside; a lock may be taken while those above it are held.
//!
//! 1. device-mapper's suspend lock of a snapshot's device, then that of an origin's;
//! 2. `Origin::merge_gate`, then `Registry::origins`, then `Origin::snapshots`, then
//!    `Origin::members`;
//! 3. `Live::tenure`, then the target of a `dm::Handle`;
//! 4. a slot of `Origin::slots`: never two at a time;
//! 5. `Live::commit`;
//! 6. `Origin::throttled`, then `Live::throttled`;
//! 7. the state of a store, `Live::ready`, `Origin::ready`, `Live::busy`, `Live::devices`,
//!    `Live::merge`, `Live::space`, `Copy::state`, `Many::state`, `Waiting::bio`: one at a time,
//!    with nothing inside.
//!
//! The locks from 4 on are spinlocks taken with interrupts off, since bios end in interrupts.

use kernel::{prelude::*, sync::Arc};

mod commit;
mod copy;
mod dm;
mod exception;
mod live;
mod many;
mod merge;
mod merger;
mod origin;
mod pending;
mod registry;
mod room;
mod route;
mod saving;
mod slot;
mod snapshot;
mod stats;
mod store;
mod sys;
mod table;
mod tenant;
mod units;
mod zero;

use dm::{Registration, Target};
use merge::MergeTarget;
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
    /// Under the kernel's own names, if that was asked for.
    standard: Option<Pin<KBox<Targets>>>,
    #[pin]
    targets: Targets,
    registry: Arc<Registry>,
}

/// The three targets, under certain names.
#[pin_data]
struct Targets {
    #[pin]
    snapshot: Registration<SnapshotTarget>,
    #[pin]
    origin: Registration<OriginTarget>,
    #[pin]
    merge: Registration<MergeTarget>,
}

impl Targets {
    /// Registers the targets: the snapshot, the origin, the merge.
    fn new(
        module: &'static ThisModule,
        names: [&'static CStr; 3],
        registry: Arc<Registry>,
    ) -> impl PinInit<Self, Error> {
        let [snapshot, origin, merge] = names;
        try_pin_init!(Self {
            snapshot <- Registration::new(module, snapshot, registry.clone()),
            origin <- Registration::new(module, origin, registry.clone()),
            merge <- Registration::new(module, merge, registry),
        }? Error)
    }

    /// Registers them under the kernel's own names, if that was asked for.
    fn standard(
        module: &'static ThisModule,
        registry: &Arc<Registry>,
    ) -> Result<Option<Pin<KBox<Self>>>> {
        if !dm::standard_names() {
            return Ok(None);
        }
        let names = [c"snapshot", c"snapshot-origin", c"snapshot-merge"];
        let targets = KBox::pin_init(Self::new(module, names, registry.clone()), GFP_KERNEL);
        let targets = targets.inspect_err(|e| {
            if matches!(*e, EBUSY | EEXIST) {
                dm_err!(
                    "standard_names=1 is not possible: the targets snapshot, snapshot-origin and \
                     snapshot-merge are registered already, probably by the module dm_snapshot"
                );
            }
        })?;
        Ok(Some(targets))
    }
}

impl kernel::InPlaceModule for DmSnapRs {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let registry = Registry::new();
        pin_init::pin_init_scope(move || {
            let registry = registry?;
            let standard = Targets::standard(module, &registry)?;
            let names = [SnapshotTarget::NAME, OriginTarget::NAME, MergeTarget::NAME];
            Ok(try_pin_init!(Self {
                standard,
                targets <- Targets::new(module, names, registry.clone()),
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
        self.registry.merge_wq.drain();
        self.registry.wq.drain();
        // And so may be a task of a device beneath that has ended I/O: what it let go of last has
        // let the last table go.
        dm::wait_for_tasks();
    }
}
