// SPDX-License-Identifier: GPL-2.0

//! The exception table against a map that has an element for every unit of chunks.

use crate::exception::{InsertError, Lookup, Run, Spare, Table, MAX_ENTRY, MAX_NEW};
use crate::units::Chunk;
use kernel::alloc::flags::*;
use kernel::host::{self, Fail};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// New chunks are old ones plus one of these, so that runs come together often.
const SHIFTS: [u64; 3] = [0, 7, 1 << 46];

/// What the table should be: for each unit which shift it has.
struct Model {
    /// Chunks in a unit.
    unit: u64,
    units: BTreeMap<u64, usize>,
}

impl Model {
    fn free(&self, unit: u64, count: u64) -> bool {
        self.units.range(unit..unit + count).next().is_none()
    }

    fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (unit, shift) in &self.units {
            let old = unit * self.unit;
            let run = Run {
                old: Chunk(old),
                new: Chunk(old + SHIFTS[*shift]),
                len: self.unit,
            };
            match runs.last_mut() {
                Some(last)
                    if last.old.0 + last.len == old && last.new.0 + last.len == run.new.0 =>
                {
                    last.len += run.len
                }
                _ => runs.push(run),
            }
        }
        runs
    }

    /// What a lookup of the chunk `into` chunks behind the start of `unit` should say.
    fn lookup(&self, unit: u64, into: u64) -> Lookup {
        match self.units.get(&unit) {
            Some(shift) => {
                let mut end = unit + 1;
                while self.units.get(&end) == Some(shift) {
                    end += 1;
                }
                Lookup::Mapped {
                    new: Chunk(unit * self.unit + into + SHIFTS[*shift]),
                    len: (end - unit) * self.unit - into,
                }
            }
            None => Lookup::Hole {
                len: match self.units.range(unit..).next() {
                    Some((next, _)) => (next - unit) * self.unit - into,
                    None => u64::MAX,
                },
            },
        }
    }

    fn check_lookup(&self, table: &Table, unit: u64, into: u64) {
        let into = into % self.unit;
        let want = self.lookup(unit, into);
        let got = table.lookup(Chunk(unit * self.unit + into));
        match (want, got) {
            // A long run may be told in parts.
            (Lookup::Mapped { new, len }, Lookup::Mapped { new: n, len: l }) if len > MAX_ENTRY => {
                assert_eq!(new, n);
                assert!(l >= MAX_ENTRY && l <= len, "{l} of {len}");
            }
            _ => assert_eq!(want, got),
        }
    }

    fn check_all(&self, table: &Table) {
        table.assert_shape();
        let runs = self.runs();
        assert_eq!(table.iter().collect::<Vec<_>>(), runs);
        assert_eq!(table.chunks(), runs.iter().map(|r| r.len).sum::<u64>());
        for unit in self.units.keys() {
            for unit in [unit.saturating_sub(1), *unit, unit + 1] {
                self.check_lookup(table, unit, 0);
                self.check_lookup(table, unit, self.unit - 1);
            }
        }
        self.check_lookup(table, 0, 0);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert { unit: u64, count: u64, shift: usize },
    Remove { unit: u64, count: u64 },
    Lookup { unit: u64, into: u64 },
    Compact,
}

fn op(domain: u64) -> impl Strategy<Value = Op> {
    let count = prop_oneof![6 => Just(1u64), 2 => 1..5u64, 1 => 1..40u64];
    prop_oneof![
        40 => (0..domain, count.clone(), prop_oneof![6 => Just(0usize), 2 => 0..SHIFTS.len()])
            .prop_map(|(unit, count, shift)| Op::Insert { unit, count, shift }),
        8 => (0..domain, count).prop_map(|(unit, count)| Op::Remove { unit, count }),
        4 => (0..domain, any::<u64>()).prop_map(|(unit, into)| Op::Lookup { unit, into }),
        1 => Just(Op::Compact),
    ]
}

/// How memory is short.
fn fails() -> impl Strategy<Value = Fail> {
    prop_oneof![
        Just(Fail::Never),
        Just(Fail::NoWait),
        any::<u64>().prop_map(Fail::Pattern)
    ]
}

/// Does something that may want memory, as the callers do it, and counts how often it did.
fn with_memory(
    spare: &mut Spare,
    fail: Fail,
    mut change: impl FnMut(&mut Spare) -> Result<(), InsertError>,
    mut unchanged: impl FnMut(),
) -> Result<(), InsertError> {
    let mut refills = 0;
    loop {
        host::fail(fail);
        let done = change(spare);
        host::fail(Fail::Never);
        if done != Err(InsertError::NeedMemory) {
            return done;
        }
        unchanged();
        refills += 1;
        assert!(refills < 100, "wants memory for ever");
        host::fail(fail);
        // It may fail; then the same is asked for again.
        let _ = spare.refill(GFP_KERNEL);
        host::fail(Fail::Never);
        if refills > 50 {
            spare.refill(GFP_KERNEL).unwrap();
        }
    }
}

/// Inserts `count` units, and looks whether the table answers as it should.
fn insert(
    model: &mut Model,
    table: &mut Table,
    spare: &mut Spare,
    fail: Fail,
    (unit, count, shift): (u64, u64, usize),
) {
    let old = unit * model.unit;
    let new = old + SHIFTS[shift];
    let len = count * model.unit;
    let was: Vec<Run> = table.iter().collect();
    let table = RefCell::new(table);
    let done = with_memory(
        spare,
        fail,
        |spare| {
            let mut table = table.borrow_mut();
            table.insert(Chunk(old), Chunk(new), len, spare)
        },
        || assert_same(&table.borrow(), &was),
    );
    if model.free(unit, count) {
        assert_eq!(done, Ok(()));
        model.units.extend((unit..unit + count).map(|u| (u, shift)));
    } else {
        assert_eq!(done, Err(InsertError::Overlap));
    }
}

/// Removes `count` units, of which not all need be there.
fn remove(
    model: &mut Model,
    table: &mut Table,
    spare: &mut Spare,
    fail: Fail,
    (unit, count): (u64, u64),
) {
    let was: Vec<Run> = table.iter().collect();
    let table = RefCell::new(table);
    let done = with_memory(
        spare,
        fail,
        |spare| {
            let old = Chunk(unit * model.unit);
            let mut table = table.borrow_mut();
            table.remove(old, count * model.unit, spare)
        },
        || assert_same(&table.borrow(), &was),
    );
    assert_eq!(done, Ok(()));
    model.units.retain(|u, _| !(unit..unit + count).contains(u));
}

fn assert_same(table: &Table, runs: &[Run]) {
    table.assert_shape();
    assert!(table.iter().eq(runs.iter().copied()));
}

fn run(unit: u64, ops: &[Op], fail: Fail) {
    let before = host::live_bytes();
    let mut model = Model {
        unit,
        units: BTreeMap::new(),
    };
    let mut table = Table::new();
    let mut spare = Spare::new();
    let mut turn = fail;
    for (i, op) in ops.iter().enumerate() {
        if let Fail::Pattern(bits) = turn {
            turn = Fail::Pattern(bits.rotate_right(3));
        }
        match *op {
            Op::Insert { unit, count, shift } => {
                // As many units at a time as the table takes.
                let at_once = (MAX_ENTRY / model.unit).max(1);
                let mut unit = unit;
                let mut left = count;
                while left > 0 {
                    let count = left.min(at_once);
                    insert(
                        &mut model,
                        &mut table,
                        &mut spare,
                        turn,
                        (unit, count, shift),
                    );
                    unit += count;
                    left -= count;
                }
            }
            Op::Remove { unit, count } => {
                remove(&mut model, &mut table, &mut spare, turn, (unit, count));
            }
            Op::Lookup { unit, into } => model.check_lookup(&table, unit, into),
            Op::Compact => {
                host::fail(turn);
                let done = table.compact();
                host::fail(Fail::Never);
                if done.is_ok() {
                    assert!(table.runs() as u64 <= table.chunks());
                }
                model.check_all(&table);
            }
        }
        if i % 64 == 0 {
            model.check_all(&table);
        }
    }
    model.check_all(&table);
    drop((table, spare));
    assert_eq!(host::live_bytes(), before, "memory is lost");
}

proptest! {
    #![proptest_config(super::config(2))]

    /// Many short runs close together: leaves fill, split and empty.
    #[test]
    fn scattered_chunks(
        ops in prop::collection::vec(op(1500), 1..if cfg!(miri) { 60 } else { 900 }),
        fail in fails(),
    ) {
        run(1, &ops, fail);
    }

    /// Few places: runs come together and are cut.
    #[test]
    fn crowded_chunks(ops in prop::collection::vec(op(60), 1..200), fail in fails()) {
        run(3, &ops, fail);
    }

    /// Whatever was inserted and removed: packed, a table takes no more than its runs need, and
    /// nothing when nothing is left.
    #[test]
    #[cfg_attr(miri, ignore = "measures memory")]
    fn memory_follows_the_runs(ops in prop::collection::vec(op(3000), 1..900)) {
        let before = host::live_bytes();
        let (mut table, mut spare) = (Table::new(), Spare::new());
        let mut model = Model { unit: 1, units: BTreeMap::new() };
        for op in &ops {
            match *op {
                Op::Insert { unit, count, shift } => {
                    insert(&mut model, &mut table, &mut spare, Fail::Never, (unit, count, shift));
                }
                Op::Remove { unit, count } => {
                    remove(&mut model, &mut table, &mut spare, Fail::Never, (unit, count));
                }
                Op::Lookup { .. } | Op::Compact => {}
            }
        }
        drop(spare);
        table.compact().unwrap();
        let packed = host::live_bytes() - before;
        prop_assert!(
            packed <= 320 + table.runs() * 17,
            "{} bytes for {} runs", packed, table.runs()
        );
        let mut spare = Spare::new();
        table.remove(Chunk(0), 1 << 20, &mut spare).unwrap();
        table.compact().unwrap();
        prop_assert_eq!((table.runs(), table.chunks()), (0, 0));
        drop(spare);
        prop_assert_eq!(host::live_bytes(), before);
    }

    /// Runs longer than an entry holds.
    #[test]
    fn long_runs(ops in prop::collection::vec(op(100), 1..200), fail in fails()) {
        run(40_000, &ops, fail);
    }

    /// Places so far apart that one leaf does not reach.
    #[test]
    fn wide_apart(
        ops in prop::collection::vec(op(1 << 18), 1..if cfg!(miri) { 60 } else { 900 }),
        fail in fails(),
    ) {
        run(MAX_ENTRY - 1, &ops, fail);
    }

    /// Chunks in order, forwards or backwards, make one run whatever the memory does.
    #[test]
    fn in_order(count in 1..600u64, backwards: bool, fail in fails()) {
        let mut table = Table::new();
        let mut spare = Spare::new();
        for i in 0..count {
            let at = if backwards { count - 1 - i } else { i };
            let done = with_memory(&mut spare, fail, |spare| {
                table.insert(Chunk(1000 + at), Chunk(5000 + at), 1, spare)
            }, || {});
            prop_assert_eq!(done, Ok(()));
        }
        prop_assert_eq!(table.runs(), 1);
        prop_assert_eq!(
            table.lookup(Chunk(1000)),
            Lookup::Mapped { new: Chunk(5000), len: count }
        );
    }

    /// What was reserved is there when no memory is left at all.
    #[test]
    fn reserved(
        first in prop::collection::btree_set(0..3000u64, 0..600),
        then in prop::collection::btree_set(0..3000u64, 1..40),
    ) {
        let mut table = Table::new();
        let mut spare = Spare::new();
        for old in &first {
            let done = with_memory(&mut spare, Fail::Never, |spare| {
                table.insert(Chunk(old * 3), Chunk(*old), 1, spare)
            }, || {});
            prop_assert_eq!(done, Ok(()));
        }
        table.compact().unwrap();
        let then: Vec<u64> = then.difference(&first).copied().collect();
        let mut spares: Vec<Spare> = then.iter().map(|_| Spare::new()).collect();
        for spare in &mut spares {
            spare.fill(GFP_KERNEL).unwrap();
            prop_assert!(spare.is_full());
        }
        let done = with_memory(&mut spare, Fail::Never, |spare| {
            table.reserve(then.len(), spare)
        }, || {});
        prop_assert_eq!(done, Ok(()));
        host::fail(Fail::Always);
        let mut done = Vec::new();
        for (old, spare) in then.iter().zip(&mut spares) {
            done.push(table.insert(Chunk(old * 3), Chunk(*old), 1, spare));
        }
        host::fail(Fail::Never);
        prop_assert!(done.iter().all(|d| *d == Ok(())));
        table.assert_shape();
        prop_assert_eq!(table.chunks(), (first.len() + then.len()) as u64);
    }
}

#[test]
fn an_empty_table_has_nothing() {
    let table = Table::new();
    assert_eq!(table.lookup(Chunk(5)), Lookup::Hole { len: u64::MAX });
    assert_eq!(table.iter().count(), 0);
    assert_eq!((table.chunks(), table.runs()), (0, 0));
}

#[test]
fn numbers_out_of_range_are_refused() {
    let mut table = Table::new();
    let mut spare = Spare::new();
    for (old, new, len) in [
        (0, MAX_NEW, 1),
        (0, MAX_NEW - 1, 2),
        (0, u64::MAX, 1),
        (u64::MAX, 1, 1),
        (1, 1, u64::MAX),
        (1, 1, MAX_ENTRY + 1),
    ] {
        assert_eq!(
            table.insert(Chunk(old), Chunk(new), len, &mut spare),
            Err(InsertError::OutOfRange)
        );
    }
    let last = u64::MAX - 1;
    table
        .insert(Chunk(0), Chunk(MAX_NEW - 1), 1, &mut spare)
        .or_else(|_| {
            spare.refill(GFP_KERNEL).unwrap();
            table.insert(Chunk(0), Chunk(MAX_NEW - 1), 1, &mut spare)
        })
        .unwrap();
    table.insert(Chunk(last), Chunk(0), 1, &mut spare).unwrap();
    assert_eq!(
        table.lookup(Chunk(last)),
        Lookup::Mapped {
            new: Chunk(0),
            len: 1
        }
    );
    assert_eq!(
        table.lookup(Chunk(0)),
        Lookup::Mapped {
            new: Chunk(MAX_NEW - 1),
            len: 1
        }
    );
    assert_eq!(table.lookup(Chunk(1)), Lookup::Hole { len: last - 1 });
    table
        .remove(Chunk(1), u64::MAX, &mut spare)
        .expect("nothing is cut");
    assert_eq!(table.lookup(Chunk(1)), Lookup::Hole { len: u64::MAX });
}

/// A full leaf gives its first entries to the one before, but for the case in which the new
/// one would go there as well and be too far away.
#[test]
fn sharing_keeps_within_reach() {
    let mut table = Table::new();
    let mut spare = Spare::new();
    let mut insert = |table: &mut Table, old: u64| {
        let done = with_memory(
            &mut spare,
            Fail::Never,
            |spare| table.insert(Chunk(old), Chunk(7), 1, spare),
            || {},
        );
        assert_eq!(done, Ok(()));
        table.assert_shape();
    };
    let far = 1 << 32;
    let first = (0..85).map(|i| 2 * i);
    let second = (0..20).map(|i| 1000 + 2 * i);
    let third = (0..65).map(|i| far + 10 + 2 * i);
    for old in first.chain(second).chain(third) {
        insert(&mut table, old);
    }
    table.remove(Chunk(2), 80, &mut Spare::new()).unwrap();
    insert(&mut table, far + 5);
    let mapped = Lookup::Mapped {
        new: Chunk(7),
        len: 1,
    };
    assert_eq!(table.lookup(Chunk(far + 5)), mapped);
    assert_eq!(table.lookup(Chunk(1038)), mapped);
    assert_eq!(table.lookup(Chunk(1039)), Lookup::Hole { len: far - 1034 });
}

/// The shards of a snapshot, as the module deals them out: spans of 256 chunks in turn.
struct Shards {
    tables: Vec<Table>,
    spare: Spare,
    before: usize,
}

impl Shards {
    const COUNT: u64 = 256;
    const SPAN: u64 = 256;

    fn new() -> Self {
        let before = host::live_bytes();
        Self {
            tables: (0..Self::COUNT).map(|_| Table::new()).collect(),
            spare: Spare::new(),
            before,
        }
    }

    fn insert(&mut self, old: u64, new: u64) {
        // Neighbouring spans go to different shards, by a multiplicative hash.
        let span = old / Self::SPAN;
        let shard = (span.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize;
        let table = &mut self.tables[shard];
        while let Err(e) = table.insert(Chunk(old), Chunk(new), 1, &mut self.spare) {
            assert_eq!(e, InsertError::NeedMemory);
            self.spare.refill(GFP_KERNEL).unwrap();
        }
    }

    /// Bytes for each chunk that is mapped, with the tables themselves.
    fn bytes_each(&mut self) -> f64 {
        self.spare = Spare::new();
        let own = self.tables.len() * std::mem::size_of::<Table>();
        let chunks: u64 = self.tables.iter().map(Table::chunks).sum();
        (host::live_bytes() - self.before + own) as f64 / chunks as f64
    }

    fn compact(&mut self) {
        for table in &mut self.tables {
            table.compact().unwrap();
        }
    }
}

/// Different numbers below `limit`, in no order.
fn scattered(count: usize, limit: u64) -> Vec<u64> {
    let mut state = 0x1234_5678_9abc_def0u64;
    let mut seen = std::collections::HashSet::new();
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % limit
    })
    .filter(|n| seen.insert(*n))
    .take(count)
    .collect()
}

#[test]
#[cfg_attr(miri, ignore = "measures memory")]
fn bytes_of_scattered_chunks() {
    for count in [
        10_000, 30_000, 50_000, 70_000, 100_000, 140_000, 300_000, 1_000_000,
    ] {
        // 400 GiB in chunks of 4 KiB.
        let mut shards = Shards::new();
        for (i, old) in scattered(count, 100 << 20).into_iter().enumerate() {
            shards.insert(old, 2 + i as u64);
        }
        let grown = shards.bytes_each();
        shards.compact();
        let packed = shards.bytes_each();
        println!("{count} scattered: {grown:.2} bytes each as inserted, {packed:.2} packed");
        if count == 100_000 {
            assert!(packed <= 16.0);
        }
        assert!(grown < if count < 50_000 { 22.0 } else { 20.0 });
        assert!(packed <= 17.0);
    }
}

#[test]
#[cfg_attr(miri, ignore = "measures memory")]
fn bytes_of_scattered_chunks_in_order() {
    let mut shards = Shards::new();
    let mut all = scattered(100_000, 100 << 20);
    all.sort_unstable();
    for (i, old) in all.into_iter().enumerate() {
        shards.insert(old, 2 + i as u64);
    }
    let grown = shards.bytes_each();
    println!("100000 scattered, ascending: {grown:.2} bytes each as inserted");
    assert!(grown < 18.0);
}

#[test]
#[cfg_attr(miri, ignore = "measures memory")]
fn bytes_of_runs() {
    let mut shards = Shards::new();
    for i in 0..1_000_000 {
        shards.insert(i, 2 + i + i / 256);
    }
    let grown = shards.bytes_each();
    shards.compact();
    let packed = shards.bytes_each();
    println!("1000000 in sequence: {grown:.3} bytes each as inserted, {packed:.3} packed");
    assert!(grown <= 1.0 && packed <= 1.0);
}
