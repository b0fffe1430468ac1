// SPDX-License-Identifier: GPL-2.0

//! What the C side of the kernel offers and [`kernel::bindings`] does not have.
//!
//! Two things end up here, both as bindgen sees them: the interfaces of
//! device-mapper, dm-io, dm-kcopyd and dm-bufio, and the wrappers of `sys/helpers.c`
//! around what are inline functions and macros in C. The types of the kernel's own
//! bindings are used wherever they exist, so a `bio` here is a `bio` there, and all of
//! those bindings can be reached by way of this module too.
//!
//! Everything in here is raw. Only `dm/` may use it.

/// What bindgen made of `sys/helpers.h` and of the headers it includes.
#[allow(
    clippy::all,
    clippy::as_underscore,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused_imports
)]
mod generated {
    // The names that the generated file refers to without defining them. What it
    // does define takes precedence.
    pub(crate) use kernel::bindings::*;
    use kernel::ffi;
    use pin_init::MaybeZeroable;

    // Kbuild exports the directory of the objects, which is not that of the
    // sources in builds with MO=.
    include!(concat!(env!("DM_SNAP_RS_OBJ"), "/sys/generated.rs"));
}

#[allow(unused_imports)]
pub(crate) use generated::*;
