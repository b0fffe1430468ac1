// SPDX-License-Identifier: GPL-2.0

//! Random images that are good: what the command says of them is what was put in.

use crate::image::{on, Image};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{json, Value};
use std::collections::BTreeSet;

/// An origin of so many chunks covers all images below.
const ORIGIN: u64 = 4000;

/// A good image: runs and single chunks, in any order, with holes between them.
pub fn images() -> impl Strategy<Value = Image> {
    let run = (
        any::<Index>(),
        any::<Index>(),
        prop_oneof![3 => 1..3u64, 1 => 1..60u64],
    );
    let runs = prop::collection::vec(run, 0..80);
    (0..4u32, 3..900u64, runs).prop_map(|(shift, chunks, runs)| {
        let mut image = Image::new(1 << shift, chunks);
        let (mut olds, mut news) = (BTreeSet::new(), BTreeSet::new());
        for (old, new, len) in runs {
            let (old, new) = (
                old.index(ORIGIN as usize) as u64,
                new.index(chunks as usize) as u64,
            );
            for n in 0..len {
                let is_free = old + n < ORIGIN
                    && new + n < chunks
                    && image.is_data(new + n)
                    && !olds.contains(&(old + n))
                    && !news.contains(&(new + n));
                if is_free {
                    olds.insert(old + n);
                    news.insert(new + n);
                    image.records.push((old + n, new + n));
                }
            }
        }
        // As long as the last area is not full on a device that has no further one.
        while image.area_chunk(image.records.len() as u64 / image.per_area()) >= chunks {
            image.records.pop();
        }
        image
    })
}

fn numbers(value: &Value, names: [&str; 5]) -> [u64; 5] {
    names.map(|name| value[name].as_u64().unwrap_or(1))
}

/// The records as `dump` tells them, of runs or of records, with their places.
fn records(list: &Value) -> Vec<((u64, u64), (u64, u64))> {
    let mut all = Vec::new();
    for element in list.as_array().unwrap() {
        let names = ["area", "index", "old", "new", "length"];
        let [area, index, old, new, length] = numbers(element, names);
        all.extend((0..length).map(|n| ((area, index + n), (old + n, new + n))));
    }
    all
}

/// The ranges of the origin in bytes, one chunk at a time and slowly.
fn delta(image: &Image, origin_sectors: u64) -> Vec<(u64, u64)> {
    let olds: BTreeSet<u64> = image.records.iter().map(|(old, _)| *old).collect();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for old in olds {
        let start = old * image.chunk_bytes();
        let end = (start + image.chunk_bytes()).min(origin_sectors * 512);
        match ranges.last_mut() {
            Some((from, length)) if *from + *length == start => *length += end - start,
            _ => ranges.push((start, end - start)),
        }
    }
    ranges
}

/// The free chunks before the last one in use, and in how many places they are.
fn holes(image: &Image) -> (u64, u64) {
    let used: BTreeSet<u64> = image.records.iter().map(|(_, new)| *new).collect();
    let last = used.last().copied().unwrap_or(0);
    let is_free = |chunk: u64| image.is_data(chunk) && !used.contains(&chunk);
    let free = (2..last).filter(|chunk| is_free(*chunk));
    let begins = free.clone().filter(|chunk| !is_free(*chunk - 1));
    (free.count() as u64, begins.count() as u64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_good_image_is_told_as_it_is(image in images(), cut in 0..8u64) {
        let file = image.write();
        // The last chunk of an origin may be there in part.
        let origin = ORIGIN * image.chunk - cut.min(image.chunk - 1);
        let origin_option = format!("--origin-sectors={origin}");
        let wanted: Vec<_> = image
            .records
            .iter()
            .enumerate()
            .map(|(n, record)| (image.place(n), *record))
            .collect();

        let ran = on("check", &file, &["--json", &origin_option]);
        prop_assert_eq!(ran.status, Some(0), "{}{}", ran.out, ran.err);
        let report = ran.json();
        prop_assert_eq!(&report["clean"], &json!(true));
        prop_assert_eq!(&report["state"], &json!("used"));
        prop_assert_eq!(report["records"].as_u64(), Some(wanted.len() as u64));
        prop_assert_eq!(report["layout"]["records_per_area"].as_u64(), Some(image.per_area()));
        let (chunks, places) = holes(&image);
        prop_assert_eq!(&report["holes"], &json!({"places": places, "chunks": chunks}));

        for (option, name) in [("--runs", "runs"), ("--records", "records")] {
            let ran = on("dump", &file, &["--json", option]);
            prop_assert_eq!(ran.status, Some(0), "{}", ran.err);
            let dump = ran.json();
            prop_assert_eq!(&records(&dump[name]), &wanted);
            let (area, index) = image.place(wanted.len());
            prop_assert_eq!(&dump["next_record"], &json!({"area": area, "index": index}));
            for (n, told) in dump["areas"].as_array().unwrap().iter().enumerate() {
                let first = n as u64 * image.per_area();
                let here = (wanted.len() as u64).saturating_sub(first).min(image.per_area());
                let chunk = image.area_chunk(n as u64);
                let offset = chunk * image.chunk_bytes();
                let area = json!({"area": n, "chunk": chunk, "offset": offset, "records": here});
                prop_assert_eq!(told, &area);
            }
        }
        let runs = on("dump", &file, &["--json"]).json();
        for pair in runs["runs"].as_array().unwrap().windows(2) {
            let names = ["area", "index", "old", "new", "length"];
            let ([a, _, old, new, len], next) = (numbers(&pair[0], names), numbers(&pair[1], names));
            prop_assert!(next[0] != a || next[2] != old + len || next[3] != new + len, "{pair:?}");
        }

        let ran = on("delta", &file, &["--json", &origin_option]);
        prop_assert_eq!(ran.status, Some(0), "{}", ran.err);
        let told = ran.json();
        let wanted = delta(&image, origin);
        let list: Vec<_> = told["ranges"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| (r["offset"].as_u64().unwrap(), r["length"].as_u64().unwrap()))
            .collect();
        prop_assert_eq!(&list, &wanted);
        let total: u64 = wanted.iter().map(|(_, length)| length).sum();
        prop_assert_eq!(told["changed_bytes"].as_u64(), Some(total));
        prop_assert_eq!(&told["superset"], &json!(true));
        let text: Vec<_> = on("delta", &file, &[&origin_option])
            .out
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let (offset, length) = line.split_once(' ').unwrap();
                (offset.parse().unwrap(), length.parse().unwrap())
            })
            .collect();
        prop_assert_eq!(text, wanted);
    }
}
