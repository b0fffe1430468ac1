// SPDX-License-Identifier: GPL-2.0

//! Targets: the trait that one implements, its registration, and the adapter between.
//!
//! C header: [`include/linux/device-mapper.h`](srctree/include/linux/device-mapper.h)

use super::{
    bio::{Attached, Bio, Incoming, PerBio, Queued},
    device::{Device, OpenDevice},
    handle::Handle,
    setup::{Args, Setup},
    work::NoIo,
};
use crate::sys;
use core::{marker::PhantomPinned, ptr::NonNull};
use kernel::{
    bindings, fmt,
    prelude::*,
    types::{ForeignOwnable, Opaque},
};

/// What `map` did with a bio.
pub(crate) enum Mapped<P: PerBio> {
    /// It has been sent to a device beneath, by [`Bio::remap`]; device-mapper submits it.
    Remapped(Bio<P>),
    /// It waits on a list.
    Queued(Queued),
    /// It is to end with an I/O error.
    Kill(Bio<P>),
    /// It is to end in this way, without having been anywhere.
    End(Bio<P>, Result),
    /// It is given back until its device is resumed: see [`Bio::may_requeue`].
    GiveBack(Bio<P>),
}

impl<P: PerBio> Mapped<P> {
    /// Does with the bio what device-mapper would do after `map`: for one that is tried again.
    ///
    /// Context: may sleep; not from `map`.
    pub(crate) fn settle(self) {
        match self {
            Mapped::Remapped(bio) => bio.submit(),
            Mapped::Queued(_) => {}
            Mapped::Kill(bio) => bio.end(Err(EIO)),
            Mapped::End(bio, result) => bio.end(result),
            Mapped::GiveBack(bio) => bio.requeue(),
        }
    }
}

/// What `end_io` did with a bio.
pub(crate) enum EndIo<P: PerBio> {
    /// It may end.
    Done(Bio<P>),
    /// It waits on a list. When it is ended from there, `end_io` is called again.
    Held(Queued),
}

/// Which text `status` is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusKind {
    /// The state, as in `dmsetup status`.
    Info,
    /// The table line, as in `dmsetup table`.
    Table,
    /// What the integrity measurement architecture records.
    Ima,
}

/// The limits of the device that a target belongs to.
pub(crate) struct Hints<'a>(&'a mut bindings::queue_limits);

impl Hints<'_> {
    /// I/O in whole units of so many bytes is best, unless the devices beneath say otherwise.
    pub(crate) fn prefer_io(&mut self, bytes: u64) {
        if self.0.io_opt == 0 {
            self.0.io_opt = u32::try_from(bytes).unwrap_or(0);
        }
    }

    /// Discards are taken, in units of so many bytes, and of at most so many sectors at a time.
    pub(crate) fn take_discards(&mut self, unit: u64, sectors: u64) {
        self.0.discard_granularity = u32::try_from(unit).unwrap_or(0);
        self.0.max_hw_discard_sectors = u32::try_from(sectors).unwrap_or(u32::MAX);
    }
}

/// A device-mapper target.
///
/// An instance belongs to one line of a table. All callbacks share it: `map`, `end_io` and
/// `status` run at any time and on any CPU, even beside themselves; the others run one at a time
/// for an instance. When an instance is dropped, its bios have all ended.
#[vtable]
pub(crate) trait Target: Sized + Send + Sync + 'static {
    /// The name in table lines.
    const NAME: &'static CStr;
    /// The version, which tools look at to know what a target can do.
    const VERSION: [u32; 3];

    /// What all instances share; given at registration.
    type Context: Send + Sync + 'static;
    /// What is kept with each bio.
    type PerBio: PerBio;
    /// A message, when it has been read.
    type Message: 'static;

    /// Makes an instance from a table line. May sleep.
    ///
    /// # Errors
    ///
    /// The line was refused. The reason has been logged, and told by [`Setup::set_error`].
    fn new(context: &Self::Context, setup: &mut Setup<'_>, args: &Args<'_>) -> Result<Self>;

    /// A bio has come. Process context; must not wait for other bios.
    fn map(&self, bio: Incoming<'_, Self::PerBio>) -> Mapped<Self::PerBio>;

    /// A bio has ended at the device beneath, or by [`Bio::end`].
    ///
    /// Context: any, interrupts included. Must not sleep.
    fn end_io(&self, bio: Bio<Self::PerBio>, result: Result) -> EndIo<Self::PerBio> {
        let _ = result;
        EndIo::Done(bio)
    }

    /// The device is about to resume. May sleep.
    ///
    /// # Errors
    ///
    /// The device can't resume; the reason has been logged.
    fn preresume(&self) -> Result {
        Ok(())
    }

    /// The device resumes: bios will come. May sleep.
    fn resume(&self) {}

    /// The device is about to be suspended, which goes on when all bios have ended. With
    /// `may_requeue`, a bio that waits can be given back by [`Bio::requeue`]. May sleep.
    fn presuspend(&self, may_requeue: bool) {
        let _ = may_requeue;
    }

    /// The device is not suspended after what `presuspend` said, since that was interrupted. May
    /// sleep.
    fn presuspend_undo(&self) {}

    /// The device has been suspended: all bios have ended. May sleep.
    fn postsuspend(&self) {}

    /// Reads the words of a message (`dmsetup message`).
    ///
    /// # Errors
    ///
    /// It is not known; this has been logged.
    fn read_message(args: &Args<'_>) -> Result<Self::Message>;

    /// A message has come. Answers whether there is a text in `out`, which does not matter if it
    /// fails. May sleep.
    ///
    /// # Errors
    ///
    /// The message was refused; the reason has been logged.
    fn message(&self, message: Self::Message, out: &mut dyn fmt::Write) -> Result<bool>;

    /// Writes a status text. May sleep.
    ///
    /// # Errors
    ///
    /// The text did not fit.
    fn status(&self, kind: StatusKind, out: &mut dyn fmt::Write) -> fmt::Result;

    /// Calls `f` for each device beneath, with the range that is used, in sectors. May sleep.
    fn iterate_devices(&self, len: u64, f: &mut dyn FnMut(&Device, u64, u64) -> i32) -> i32;

    /// Adjusts the limits of the device. May sleep.
    fn io_hints(&self, hints: &mut Hints<'_>) {
        let _ = hints;
    }
}

/// What `ti->private` of an instance leads to.
struct Instance<T> {
    inner: T,
    devices: KVec<OpenDevice>,
    handle: Handle,
}

/// A registered target. While it exists, tables can name it.
///
/// # Invariants
///
/// `ty` is registered with device-mapper from construction to drop.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: Target> {
    #[pin]
    ty: Opaque<sys::target_type>,
    context: T::Context,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: A registration may be dropped by any task.
unsafe impl<T: Target> Send for Registration<T> {}
// SAFETY: Only the context, which is `Sync`, can be reached through a shared reference.
unsafe impl<T: Target> Sync for Registration<T> {}

impl<T: Target> Registration<T> {
    /// Registers the target under a name for as long as the value lives. May sleep.
    ///
    /// # Errors
    ///
    /// `EBUSY` (`EEXIST` in older kernels) if there is a target of that name already.
    pub(crate) fn new(
        module: &'static ThisModule,
        name: &'static CStr,
        context: T::Context,
    ) -> impl PinInit<Self, Error> {
        // INVARIANT: `dm_register_target` comes last; if it fails, the value does not come to be.
        try_pin_init!(Self {
            context,
            _pin: PhantomPinned,
            ty <- Opaque::try_ffi_init(move |slot: *mut sys::target_type| {
                let value = sys::target_type {
                    features: 0,
                    name: name.as_char_ptr(),
                    module: module.as_ptr(),
                    version: T::VERSION,
                    ctr: Some(Adapter::<T>::ctr),
                    dtr: Some(Adapter::<T>::dtr),
                    map: Some(Adapter::<T>::map),
                    end_io: if T::HAS_END_IO { Some(Adapter::<T>::end_io) } else { None },
                    preresume: if T::HAS_PRERESUME { Some(Adapter::<T>::preresume) } else { None },
                    resume: if T::HAS_RESUME { Some(Adapter::<T>::resume) } else { None },
                    presuspend: if T::HAS_PRESUSPEND { Some(Adapter::<T>::presuspend) } else { None },
                    presuspend_undo: if T::HAS_PRESUSPEND_UNDO {
                        Some(Adapter::<T>::presuspend_undo)
                    } else {
                        None
                    },
                    message: Some(Adapter::<T>::message),
                    postsuspend: if T::HAS_POSTSUSPEND {
                        Some(Adapter::<T>::postsuspend)
                    } else {
                        None
                    },
                    status: Some(Adapter::<T>::status),
                    iterate_devices: Some(Adapter::<T>::iterate_devices),
                    io_hints: if T::HAS_IO_HINTS { Some(Adapter::<T>::io_hints) } else { None },
                    ..pin_init::zeroed()
                };
                // SAFETY: `slot` is valid for a write.
                unsafe { slot.write(value) };
                // SAFETY: `slot` is initialised, and stays in place until it is unregistered.
                kernel::error::to_result(unsafe { sys::dm_register_target(slot) })
            }),
        }? Error)
    }
}

#[pinned_drop]
impl<T: Target> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the invariant, the type is registered. Tables that use it keep the module,
        // so there are none.
        unsafe { sys::dm_unregister_target(self.ty.get()) };
    }
}

/// The C callbacks of a target.
struct Adapter<T>(core::marker::PhantomData<T>);

impl<T: Target> Adapter<T> {
    /// # Safety
    ///
    /// `ti` must be a target of this type.
    unsafe fn context<'a>(ti: NonNull<sys::dm_target>) -> &'a T::Context {
        // SAFETY: The target is valid.
        let ty = unsafe { (*ti.as_ptr()).type_ };
        let ty = Opaque::cast_from(ty);
        // SAFETY: The type is the field of a registration.
        let registration = unsafe { kernel::container_of!(ty, Registration<T>, ty) };
        // SAFETY: A registration lives as long as there are targets of its type.
        unsafe { &(*registration).context }
    }

    /// # Safety
    ///
    /// `ti` must be a target of this type that was constructed and not yet destroyed.
    unsafe fn instance<'a>(ti: *mut sys::dm_target) -> &'a Instance<T> {
        // SAFETY: The target is valid.
        let private = unsafe { (*ti).private };
        // SAFETY: The constructor put a box there, and the destructor alone takes it.
        unsafe { <KBox<Instance<T>> as ForeignOwnable>::borrow(private) }
    }

    /// # Safety
    ///
    /// To be called by device-mapper as the constructor of a target of this type.
    unsafe extern "C" fn ctr(
        ti: *mut sys::dm_target,
        argc: c_uint,
        argv: *mut *mut c_char,
    ) -> c_int {
        let Some(target) = NonNull::new(ti) else {
            return EINVAL.to_errno();
        };
        // SAFETY: device-mapper gives a target of this type.
        let context = unsafe { Self::context(target) };
        // SAFETY: device-mapper gives valid arguments, which live as long as the call.
        let args = unsafe { Args::new(argc, argv) };
        // The place for the instance comes first: what has been opened can't be lost for want
        // of memory after that.
        let Ok(place) = KBox::<Instance<T>>::new_uninit(GFP_KERNEL) else {
            return ENOMEM.to_errno();
        };
        // SAFETY: The target is ours until the constructor returns. It is valid until the
        // destructor has run or, if this fails, until we return; both dispose of the parts.
        let mut setup = match unsafe { Setup::new(&mut *ti) } {
            Ok(setup) => setup,
            Err(e) => return e.to_errno(),
        };
        // Who resumes a device, while others are suspended, may wait for a lock that is held here.
        let no_io = NoIo::enter();
        let made = T::new(context, &mut setup, &args);
        drop(no_io);
        let (devices, handle) = setup.into_parts();
        let inner = match made {
            Ok(inner) => inner,
            Err(e) => {
                // SAFETY: This is the target that the devices were opened for, and all that was
                // made with them has gone.
                unsafe { Self::dispose(target, devices, handle) };
                return e.to_errno();
            }
        };
        let instance = KBox::write(
            place,
            Instance {
                inner,
                devices,
                handle,
            },
        );
        // SAFETY: The target is valid and ours.
        unsafe { (*ti).per_io_data_size = size_of::<Attached<T::PerBio>>() as u32 };
        // SAFETY: As above.
        unsafe { (*ti).set_accounts_remapped_io(true) };
        // SAFETY: As above.
        unsafe { (*ti).private = instance.into_foreign() };
        0
    }

    /// Disposes of what device-mapper's target has given out.
    ///
    /// # Safety
    ///
    /// The devices must have been opened for this target.
    unsafe fn dispose(target: NonNull<sys::dm_target>, devices: KVec<OpenDevice>, handle: Handle) {
        handle.revoke();
        for device in devices {
            // SAFETY: The caller vouches for it.
            unsafe { device.close(target) };
        }
    }

    /// # Safety
    ///
    /// To be called by device-mapper as the destructor of a target of this type.
    unsafe extern "C" fn dtr(ti: *mut sys::dm_target) {
        // SAFETY: The target is valid.
        let private = unsafe { (*ti).private };
        // SAFETY: The constructor put a box there, and nobody borrows it any more.
        let instance = unsafe { <KBox<Instance<T>> as ForeignOwnable>::from_foreign(private) };
        let Instance {
            inner,
            devices,
            handle,
        } = KBox::into_inner(instance);
        drop(inner);
        if let Some(target) = NonNull::new(ti) {
            // SAFETY: The devices were opened by the constructor for this target.
            unsafe { Self::dispose(target, devices, handle) };
        }
    }

    /// # Safety
    ///
    /// To be called by device-mapper to map a bio for a constructed target of this type.
    unsafe extern "C" fn map(ti: *mut sys::dm_target, bio: *mut bindings::bio) -> c_int {
        let Some(bio) = NonNull::new(bio) else {
            return sys::DM_MAPIO_KILL as c_int;
        };
        // SAFETY: device-mapper gives a constructed target.
        let instance = unsafe { Self::instance(ti) };
        // SAFETY: device-mapper gives us the bio, with the per-bio data that `ctr` asked for.
        let given = unsafe { Bio::attach(bio, ti) };
        // SAFETY: device-mapper is mapping it, until this returns.
        let incoming = unsafe { Incoming::new(given) };
        match instance.inner.map(incoming) {
            // The target has kept the given bio and answered with another one.
            Mapped::Remapped(other) if other.as_raw() != bio => {
                other.submit();
                sys::DM_MAPIO_SUBMITTED as c_int
            }
            Mapped::Kill(other) if other.as_raw() != bio => {
                other.end(Err(EIO));
                sys::DM_MAPIO_SUBMITTED as c_int
            }
            Mapped::Remapped(bio) if bio.is_remapped() => {
                bio.into_raw();
                sys::DM_MAPIO_REMAPPED as c_int
            }
            Mapped::Remapped(bio) | Mapped::Kill(bio) => {
                bio.into_raw();
                sys::DM_MAPIO_KILL as c_int
            }
            Mapped::End(bio, result) => {
                bio.end(result);
                sys::DM_MAPIO_SUBMITTED as c_int
            }
            Mapped::GiveBack(bio) => {
                bio.requeue();
                sys::DM_MAPIO_SUBMITTED as c_int
            }
            Mapped::Queued(_) => sys::DM_MAPIO_SUBMITTED as c_int,
        }
    }

    /// # Safety
    ///
    /// To be called by device-mapper when a bio that this type's `map` has seen has ended.
    unsafe extern "C" fn end_io(
        ti: *mut sys::dm_target,
        bio: *mut bindings::bio,
        error: *mut bindings::blk_status_t,
    ) -> c_int {
        // SAFETY: device-mapper gives a constructed target.
        let instance = unsafe { Self::instance(ti) };
        // SAFETY: device-mapper gives a valid status.
        let result = match unsafe { *error } {
            0 => Ok(()),
            _ => Err(EIO),
        };
        let Some(bio) = NonNull::new(bio) else {
            return sys::DM_ENDIO_DONE as c_int;
        };
        // SAFETY: `map` attached the per-bio data, and device-mapper hands the bio over again.
        let given = unsafe { Bio::from_raw(bio) };
        match instance.inner.end_io(given, result) {
            // The target has kept the given bio and answered with another one.
            EndIo::Done(other) if other.as_raw() != bio => {
                other.end(result);
                sys::DM_ENDIO_INCOMPLETE as c_int
            }
            EndIo::Done(bio) => {
                bio.into_raw();
                sys::DM_ENDIO_DONE as c_int
            }
            EndIo::Held(_) => sys::DM_ENDIO_INCOMPLETE as c_int,
        }
    }

    /// # Safety
    ///
    /// To be called by device-mapper for a constructed target of this type.
    unsafe extern "C" fn preresume(ti: *mut sys::dm_target) -> c_int {
        // SAFETY: device-mapper gives a constructed target.
        let instance = unsafe { Self::instance(ti) };
        // Other devices may be suspended, among them the origin: memory must not have to come from
        // what is written there.
        let _no_io = NoIo::enter();
        match instance.inner.preresume() {
            Ok(()) => 0,
            Err(e) => e.to_errno(),
        }
    }

    /// # Safety
    ///
    /// To be called by device-mapper for a constructed target of this type.
    unsafe extern "C" fn resume(ti: *mut sys::dm_target) {
        // SAFETY: device-mapper gives a constructed target.
        unsafe { Self::instance(ti) }.inner.resume();
    }

    /// # Safety
    ///
    /// To be called by device-mapper for a constructed target of this type.
    unsafe extern "C" fn presuspend(ti: *mut sys::dm_target) {
        // SAFETY: device-mapper gives a constructed target.
        let may_requeue = unsafe { sys::dm_noflush_suspending(ti) } != 0;
        // SAFETY: As above.
        unsafe { Self::instance(ti) }.inner.presuspend(may_requeue);
    }

    /// # Safety
    ///
    /// To be called by device-mapper for a constructed target of this type.
    unsafe extern "C" fn presuspend_undo(ti: *mut sys::dm_target) {
        // SAFETY: device-mapper gives a constructed target.
        unsafe { Self::instance(ti) }.inner.presuspend_undo();
    }

    /// # Safety
    ///
    /// To be called by device-mapper for a constructed target of this type.
    unsafe extern "C" fn postsuspend(ti: *mut sys::dm_target) {
        // SAFETY: device-mapper gives a constructed target.
        unsafe { Self::instance(ti) }.inner.postsuspend();
    }

    /// # Safety
    ///
    /// To be called by device-mapper for a constructed target of this type, with the words of a
    /// message and a buffer of `maxlen` bytes.
    unsafe extern "C" fn message(
        ti: *mut sys::dm_target,
        argc: c_uint,
        argv: *mut *mut c_char,
        result: *mut c_char,
        maxlen: c_uint,
    ) -> c_int {
        // SAFETY: device-mapper gives a constructed target.
        let instance = unsafe { Self::instance(ti) };
        // SAFETY: device-mapper gives valid arguments, which stay until the answer is written.
        let args = unsafe { Args::new(argc, argv) };
        let message = match T::read_message(&args) {
            Ok(message) => message,
            Err(e) => return e.to_errno(),
        };
        let mut answer = Ok(false);
        let write = |out: &mut dyn fmt::Write| answer = instance.inner.message(message, out);
        // The answer takes the place of the words, which nobody reads any more.
        // SAFETY: device-mapper's buffer is valid for writes of `maxlen` bytes.
        unsafe { with_text(result, maxlen, write) };
        match answer {
            // device-mapper copies the text to who asked.
            Ok(true) => 1,
            Ok(false) => 0,
            Err(e) => e.to_errno(),
        }
    }

    /// # Safety
    ///
    /// To be called by device-mapper for a constructed target of this type, with a buffer of
    /// `maxlen` bytes.
    unsafe extern "C" fn status(
        ti: *mut sys::dm_target,
        kind: sys::status_type_t,
        _flags: c_uint,
        result: *mut c_char,
        maxlen: c_uint,
    ) {
        // SAFETY: device-mapper gives a constructed target.
        let instance = unsafe { Self::instance(ti) };
        let kind = match kind {
            sys::status_type_t_STATUSTYPE_INFO => StatusKind::Info,
            sys::status_type_t_STATUSTYPE_TABLE => StatusKind::Table,
            _ => StatusKind::Ima,
        };
        let write = |out: &mut dyn fmt::Write| {
            let _ = instance.inner.status(kind, out);
        };
        // SAFETY: device-mapper's buffer is valid for writes of `maxlen` bytes.
        unsafe { with_text(result, maxlen, write) };
    }

    /// # Safety
    ///
    /// To be called by device-mapper for a constructed target of this type.
    unsafe extern "C" fn iterate_devices(
        ti: *mut sys::dm_target,
        f: sys::iterate_devices_callout_fn,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: device-mapper gives a constructed target.
        let instance = unsafe { Self::instance(ti) };
        let Some(f) = f else { return 0 };
        // SAFETY: The target is valid.
        let len = unsafe { (*ti).len };
        let ours = |device: &Device| {
            let mut devices = instance.devices.iter();
            devices.any(|open| open.as_ptr() == device.as_ptr())
        };
        instance
            .inner
            .iterate_devices(len, &mut |device, start, len| {
                if !ours(device) {
                    return 0;
                }
                // SAFETY: The device belongs to this target, and the callback is meant for it.
                unsafe { f(ti, device.as_ptr(), start, len, data) }
            })
    }

    /// # Safety
    ///
    /// To be called by device-mapper for a constructed target of this type, with valid limits.
    unsafe extern "C" fn io_hints(ti: *mut sys::dm_target, limits: *mut bindings::queue_limits) {
        // SAFETY: device-mapper gives a constructed target.
        let instance = unsafe { Self::instance(ti) };
        // SAFETY: device-mapper gives valid limits that are ours during the call.
        let mut hints = Hints(unsafe { &mut *limits });
        instance.inner.io_hints(&mut hints);
    }
}

/// Has a text written into a C buffer. Whatever does not fit is left out, so device-mapper sees a
/// full buffer and calls again with a larger one. The text ends with a NUL in any case.
///
/// # Safety
///
/// `buffer` must be null, or valid for writes of `len` bytes.
unsafe fn with_text(buffer: *mut c_char, len: c_uint, write: impl FnOnce(&mut dyn fmt::Write)) {
    if len == 0 || buffer.is_null() {
        return write(&mut Limited::new(&mut []));
    }
    // SAFETY: The caller vouches for it.
    let buffer = unsafe { core::slice::from_raw_parts_mut(buffer.cast::<u8>(), len as usize) };
    let (text, nul) = buffer.split_at_mut(buffer.len().saturating_sub(1));
    let mut out = Limited::new(text);
    write(&mut out);
    let written = out.written();
    match text.get_mut(written) {
        Some(end) => *end = 0,
        None => nul.fill(0),
    }
}

/// Text into a slice, with what does not fit left out.
struct Limited<'a> {
    out: &'a mut [u8],
    written: usize,
}

impl<'a> Limited<'a> {
    fn new(out: &'a mut [u8]) -> Self {
        Self { out, written: 0 }
    }

    fn written(&self) -> usize {
        self.written
    }
}

impl fmt::Write for Limited<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let rest = self.out.get_mut(self.written..).unwrap_or(&mut []);
        let n = rest.len().min(s.len());
        for (to, from) in rest.iter_mut().zip(s.as_bytes()) {
            *to = *from;
        }
        self.written = self.written.saturating_add(n);
        Ok(())
    }
}
