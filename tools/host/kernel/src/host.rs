// SPDX-License-Identifier: GPL-2.0

//! What only tests use: allocations that fail when told to, and a count of the memory in use.

use std::cell::Cell;

/// Which allocations fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fail {
    /// None does.
    #[default]
    Never,
    /// The one after `n` more that succeed; only that one.
    Once(u64),
    /// Those that may not sleep; `GFP_KERNEL` succeeds.
    NoWait,
    /// Those that may not sleep, and each that falls on a set bit of this pattern, which is
    /// turned on by one bit at each allocation.
    Pattern(u64),
    /// All of them.
    Always,
}

thread_local! {
    static FAIL: Cell<Fail> = const { Cell::new(Fail::Never) };
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Makes allocations of this thread fail from now on, as `how` says.
pub fn fail(how: Fail) {
    FAIL.set(how);
}

/// The memory in use by this thread's vectors and boxes, in bytes, as the kernel's slab
/// allocator hands it out.
pub fn live_bytes() -> usize {
    LIVE.get()
}

/// How many allocations this thread has asked for.
pub fn allocations() -> u64 {
    COUNT.get()
}

/// What `kmalloc` hands out for a request of `bytes`, on a 64-bit machine.
pub fn bucket(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        1..=8 => 8,
        65..=96 => 96,
        129..=192 => 192,
        _ => bytes.next_power_of_two(),
    }
}

/// Whether an allocation may go on; counts it.
pub(crate) fn allowed(may_sleep: bool) -> bool {
    COUNT.set(COUNT.get() + 1);
    match FAIL.get() {
        Fail::Never => true,
        Fail::Once(0) => {
            FAIL.set(Fail::Never);
            false
        }
        Fail::Once(n) => {
            FAIL.set(Fail::Once(n - 1));
            true
        }
        Fail::NoWait => may_sleep,
        Fail::Pattern(bits) => {
            FAIL.set(Fail::Pattern(bits.rotate_right(1)));
            may_sleep && bits & 1 == 0
        }
        Fail::Always => false,
    }
}

pub(crate) fn allocated(bytes: usize) {
    LIVE.set(LIVE.get() + bytes);
}

pub(crate) fn freed(bytes: usize) {
    // A thread that ends may drop its values after the counters.
    let _ = LIVE.try_with(|live| live.set(live.get().wrapping_sub(bytes)));
}
