// SPDX-License-Identifier: GPL-2.0

//! Table lines and status texts, word for word.

use crate::table::{
    check_block_size, ArgError, Device, Features, OriginArgs, SnapshotArgs, Status, StoreType,
    TableLine,
};
use crate::units::ChunkSize;
use proptest::prelude::*;
use std::ffi::{CStr, CString};

/// Parses a line as device-mapper cuts it.
fn with_args<T>(line: &str, f: impl FnOnce(Vec<&CStr>) -> T) -> T {
    let words: Vec<CString> = line
        .split_whitespace()
        .map(|w| CString::new(w).unwrap())
        .collect();
    f(words.iter().map(CString::as_c_str).collect())
}

fn error(line: &str) -> String {
    with_args(line, |args| {
        let error = SnapshotArgs::parse(args).unwrap_err();
        assert!(!error.short().is_empty());
        error.to_string()
    })
}

#[test]
fn good_lines() {
    for (line, store, sectors) in [
        ("/dev/a /dev/b P 8", StoreType::Persistent, 8),
        ("254:1 254:2 p 16", StoreType::Persistent, 16),
        ("/dev/a /dev/b PO 8 0", StoreType::PersistentOverflow, 8),
        ("/dev/a /dev/b po 1", StoreType::PersistentOverflow, 1),
        ("/dev/a /dev/b N 2097152", StoreType::Transient, 1 << 21),
        ("/dev/a /dev/b n 0008", StoreType::Transient, 8),
    ] {
        with_args(line, |args| {
            let parsed = SnapshotArgs::parse(args.clone()).unwrap();
            assert_eq!((parsed.origin, parsed.cow), (args[0], args[1]));
            assert_eq!(parsed.store, store);
            assert_eq!(parsed.chunk_size.sectors(), sectors);
            assert_eq!(parsed.features, Features::NONE);
            assert_eq!(parsed.store.is_persistent(), store != StoreType::Transient);
        });
    }
}

#[test]
fn each_bad_argument_is_named_with_what_is_wrong() {
    for (line, text) in [
        ("", "too few arguments: 0 given, at least 4 needed: <origin> <COW device> <P|PO|N> <chunk size> [<#features> <feature>...]"),
        ("a b P", "too few arguments: 3 given, at least 4 needed: <origin> <COW device> <P|PO|N> <chunk size> [<#features> <feature>...]"),
        ("a b P 8 0 extra", "too many arguments: 'extra' stands behind the last one"),
        ("a b X 8", "store type 'X' is not P, PO or N"),
        ("a b POX 8", "store type 'POX' is not P, PO or N"),
        ("a b NO 8", "store type 'NO' is not P, PO or N"),
        ("a b persistent 8", "store type 'persistent' is not P, PO or N"),
        ("a b P x", "chunk size 'x' is not a number"),
        ("a b P 8k", "chunk size '8k' is not a number"),
        ("a b P -8", "chunk size '-8' is not a number"),
        ("a b P 0x8", "chunk size '0x8' is not a number"),
        ("a b P 0", "chunk size 0 is not allowed: give a power of two of sectors"),
        ("a b P 12", "chunk size 12 is not a power of two"),
        ("a b P 4194304", "chunk size 4194304 is too large: the limit is 4194303 sectors"),
        ("a b P 2147483648", "chunk size 2147483648 is too large: the limit is 4194303 sectors"),
        ("a b P 99999999999999999999999", "chunk size 99999999999999999999999 is too large: the limit is 4194303 sectors"),
        ("a b P 8 x", "number of features 'x' is not a number"),
        ("a b P 8 -1", "number of features '-1' is not a number"),
        ("a b P 8 99999999999999999999999", "number of features '99999999999999999999999' is not a number"),
        ("a b P 8 1", "too few arguments: 1 features announced, 0 given"),
        ("a b P 8 1 discard_passdown_origin", "feature 'discard_passdown_origin' needs the feature 'discard_zeroes_cow'"),
        ("a b P 8 2 queue_if_no_space error_if_no_space", "features 'queue_if_no_space' and 'error_if_no_space' exclude each other"),
        ("a b P 8 1 low_water_mark:", "feature 'low_water_mark:' has no number of chunks behind the colon"),
        ("a b P 8 1 low_water_mark:-1", "feature 'low_water_mark:-1' has no number of chunks behind the colon"),
        ("a b P 8 1 low_water_mark:99999999999999999999999", "feature 'low_water_mark:99999999999999999999999' has no number of chunks behind the colon"),
        ("a b P 8 1 low_water_mark", "feature 'low_water_mark' is not known: allowed are discard_zeroes_cow, discard_passdown_origin, queue_if_no_space, error_if_no_space, low_water_mark:<chunks>"),
        ("a b P 8 1 a_word_that_is_rather_long", "feature 'a_word_that_is_rather_long' is not known: allowed are discard_zeroes_cow, discard_passdown_origin, queue_if_no_space, error_if_no_space, low_water_mark:<chunks>"),
        ("a b P 8 1 fly", "feature 'fly' is not known: allowed are discard_zeroes_cow, discard_passdown_origin, queue_if_no_space, error_if_no_space, low_water_mark:<chunks>"),
        ("a b P 8 1 discard_zeroes_cow x", "too many arguments: 'x' stands behind the last one"),
    ] {
        assert_eq!(error(line), text);
    }
}

#[test]
fn what_is_not_printable_is_escaped() {
    let args = [c"a", c"b", c"P\n\xff", c"8"];
    let error = SnapshotArgs::parse(args).unwrap_err();
    assert_eq!(
        error.to_string(),
        "store type 'P\\n\\xff' is not P, PO or N"
    );
    let args = [c"a", c"b", c"P", c"\xff"];
    let error = SnapshotArgs::parse(args).unwrap_err();
    assert_eq!(error, ArgError::ChunkSizeNotNumber(c"\xff"));
}

#[test]
fn a_name_is_not_empty() {
    for (args, device) in [
        ([c"", c"b", c"P", c"8"], Device::Origin),
        ([c"a", c"", c"P", c"8"], Device::Cow),
    ] {
        assert_eq!(SnapshotArgs::parse(args), Err(ArgError::NoName(device)));
    }
    assert_eq!(
        ArgError::NoName(Device::Cow).to_string(),
        "COW device has an empty name"
    );
}

#[test]
fn a_chunk_is_made_of_whole_blocks_of_both_devices() {
    let size = |sectors| ChunkSize::from_sectors(sectors).unwrap();
    for device in [Device::Origin, Device::Cow] {
        assert_eq!(check_block_size(size(8), device, 4096), Ok(()));
        assert_eq!(check_block_size(size(8), device, 512), Ok(()));
        let error = check_block_size(size(4), device, 4096).unwrap_err();
        assert_eq!(error, ArgError::ChunkSizeNotMultiple(4, device, 4096));
        assert!(check_block_size(size(4), device, 0).is_err());
    }
    assert_eq!(
        ArgError::ChunkSizeNotMultiple(4, Device::Origin, 4096).to_string(),
        "chunk size 4 is not a multiple of the logical block size of the origin: 8 sectors"
    );
    assert_eq!(
        ArgError::ChunkSizeNotMultiple(4, Device::Cow, 4096).to_string(),
        "chunk size 4 is not a multiple of the logical block size of the COW device: 8 sectors"
    );
}

#[test]
fn what_only_the_target_can_know_has_its_text_as_well() {
    for (error, text) in [
        (
            ArgError::SameDevice,
            "COW device is the same device as the origin",
        ),
        (
            ArgError::CannotOpen(Device::Origin, c"/dev/x", -2),
            "origin '/dev/x' cannot be opened: error -2",
        ),
        (
            ArgError::CannotOpen(Device::Cow, c"/dev/x", -16),
            "COW device '/dev/x' cannot be opened: error -16",
        ),
        (
            ArgError::CowReadOnly(c"/dev/x"),
            "COW device '/dev/x' is read-only",
        ),
        (
            ArgError::CowTooSmall(8, 24),
            "COW device is too small: it has 8 sectors, and at least 24 are needed",
        ),
    ] {
        assert_eq!(error.to_string(), text);
        assert!(!error.short().is_empty());
    }
}

#[test]
fn origin_lines() {
    with_args("/dev/a", |args| {
        assert_eq!(OriginArgs::parse(args).unwrap().origin, c"/dev/a");
    });
    for (line, count) in [("", 0), ("a b", 2), ("a b c", 3)] {
        with_args(line, |args| {
            let error = OriginArgs::parse(args).unwrap_err();
            assert_eq!(error, ArgError::OriginCount(count));
            assert_eq!(
                error.to_string(),
                format!("wrong number of arguments: {count} given, 1 needed: <origin>")
            );
        });
    }
    assert_eq!(
        OriginArgs::parse([c""]),
        Err(ArgError::NoName(Device::Origin))
    );
}

const LINE: TableLine<'_> = TableLine {
    origin: c"254:11",
    cow: c"254:12",
    store: StoreType::Persistent,
    chunk_sectors: 16,
    features: Features::NONE,
};

const GOOD: Status = Status {
    valid: true,
    merge_failed: false,
    overflowed: false,
    allocated: 397_896,
    total: 2_097_152,
    metadata: 1560,
};

#[test]
fn the_table_text_is_the_kernels() {
    let text = |line: TableLine<'_>| {
        let mut text = String::new();
        line.table(&mut text).unwrap();
        text
    };
    assert_eq!(text(LINE), "254:11 254:12 P 16");
    let store = StoreType::PersistentOverflow;
    assert_eq!(text(TableLine { store, ..LINE }), "254:11 254:12 PO 16");
    let store = StoreType::Transient;
    assert_eq!(text(TableLine { store, ..LINE }), "254:11 254:12 N 16");
}

#[test]
fn the_status_text_is_the_kernels() {
    let text = |status: Status| {
        let mut text = String::new();
        status.info(&mut text).unwrap();
        text
    };
    assert_eq!(text(GOOD), "397896/2097152 1560");
    let overflowed = Status {
        overflowed: true,
        ..GOOD
    };
    assert_eq!(text(overflowed), "Overflow");
    let failed = Status {
        merge_failed: true,
        ..overflowed
    };
    assert_eq!(text(failed), "Merge failed");
    let invalid = Status {
        valid: false,
        ..failed
    };
    assert_eq!(text(invalid), "Invalid");
}

#[test]
fn the_ima_text_is_the_kernels() {
    let text = |status: Status| {
        let mut text = String::new();
        status
            .ima(&mut text, c"snapshot-rs", [1, 2, 3], &LINE)
            .unwrap();
        text
    };
    assert_eq!(
        text(GOOD),
        "target_name=snapshot-rs,target_version=1.2.3,snap_origin_name=254:11,\
         snap_cow_name=254:12,snap_valid=y,snap_merge_failed=n,snapshot_overflowed=n;"
    );
    let bad = Status {
        valid: false,
        merge_failed: true,
        overflowed: true,
        ..GOOD
    };
    assert_eq!(
        text(bad),
        "target_name=snapshot-rs,target_version=1.2.3,snap_origin_name=254:11,\
         snap_cow_name=254:12,snap_valid=n,snap_merge_failed=y,snapshot_overflowed=y;"
    );
}

proptest! {
    #![proptest_config(super::config(1))]

    /// Whatever the words are: an answer or a sentence, and no panic.
    #[test]
    fn no_line_is_a_panic(words in prop::collection::vec(
        prop_oneof![
            "[0-9]{0,25}",
            "[PONpon]{1,2}",
            "[a-z_]{0,10}",
            Just("discard_zeroes_cow".to_owned()),
        ],
        0..8,
    )) {
        let words: Vec<CString> = words.iter().map(|w| CString::new(w.as_str()).unwrap()).collect();
        let args = || words.iter().map(CString::as_c_str);
        if let Err(error) = SnapshotArgs::parse(args()) {
            prop_assert!(error.to_string().len() > 20);
        }
        prop_assert_eq!(OriginArgs::parse(args()).is_ok(), words.len() == 1 && !words[0].is_empty());
    }

    /// What `dmsetup table` shows can be loaded again.
    #[test]
    fn a_table_text_is_a_line(shift in 0..22u32, which in 0..3usize) {
        let stores = [StoreType::Persistent, StoreType::PersistentOverflow, StoreType::Transient];
        let line = TableLine { chunk_sectors: 1 << shift, store: stores[which], ..LINE };
        let mut text = String::new();
        line.table(&mut text).unwrap();
        with_args(&text, |args| {
            let parsed = SnapshotArgs::parse(args).unwrap();
            assert_eq!((parsed.origin, parsed.cow), (line.origin, line.cow));
            assert_eq!(parsed.chunk_size.sectors(), line.chunk_sectors);
            assert_eq!((parsed.store, parsed.features), (line.store, line.features));
        });
    }
}
