// SPDX-License-Identifier: GPL-2.0

//! What the module's store makes of images, for `hostile.py`.
//!
//! Each line of the standard input names a file, the bytes of a logical block, the chunk size in
//! the table line, the sectors of the origin, and a number that says how the store goes on with
//! the image once it is open. For each, a line says what came of it.

#![deny(unsafe_code)]

use engine::image;
use engine::naive::{Setup, View};
use std::fmt::Write;
use std::io::stdin;
use std::panic::catch_unwind;

fn look(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let [file, numbers @ ..] = words.as_slice() else {
        panic!("an empty line");
    };
    let image = std::fs::read(file).expect("the image is there");
    let numbers: Vec<u64> = numbers.iter().map(|n| n.parse().expect(n)).collect();
    let [block, asked, origin_sectors, seed] = numbers[..] else {
        panic!("'{line}' has not all words");
    };
    let setup = Setup {
        block: block as u32,
        asked,
        origin_sectors,
    };
    // The one reader is compared with the other, and goes on; what is told is what the module's
    // own has found.
    image::check(&image, &setup, seed);
    match image::open(&image, &setup).view() {
        View::Refused => "refused".to_owned(),
        View::Invalid => "invalid".to_owned(),
        View::Records { chunk, records } => {
            let mut text = format!("shown {chunk}");
            for (old, new) in records {
                let _ = write!(text, " {old}:{new}");
            }
            text
        }
    }
}

fn main() {
    for line in stdin().lines() {
        let line = line.expect("standard input can be read");
        match catch_unwind(|| look(&line)) {
            Ok(text) => println!("{text}"),
            Err(_) => println!("panic"),
        }
    }
}
