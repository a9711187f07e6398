//! Volumes by the control interface of the target on this machine.

use std::ffi::{c_char, c_int};

use ringway_client::control::{Method, segment};
use ringway_client::{Refusal, errno};
use ringway_core::control::VolumeInfo;
use ringway_core::limits::VOLUME_BYTES_MAX;
use ringway_core::volume::check_name;
use serde_json::{Value, json};

use crate::attr::text;
use crate::ctx::{OvsCtx, given};
use crate::errors::{invalid, number, of_control, patiently, status};

/// The name of a volume, and the context.
///
/// # Safety
/// As for [`given`] and [`text`].
pub(crate) unsafe fn named<'a>(ctx: *const OvsCtx, name: *const c_char) -> Result<(&'a OvsCtx, &'a str), Refusal> {
    // SAFETY: by the caller's promise.
    let (ctx, name) = unsafe { (given(ctx)?, text("the volume's name", name)?) };
    check_name(name).map_err(|bad| invalid(bad.to_string()))?;
    check_target(ctx, name)?;
    Ok((ctx, name))
}

/// A volume that the context has open over a network may be another target's than the one whose control interface is asked: then nothing
/// is done to the volume here that happens to have the same name.
pub(crate) fn check_target(ctx: &OvsCtx, name: &str) -> Result<(), Refusal> {
    let open = ctx.opened().filter(|open| open.volume == name);
    let Some(uuid) = open.and_then(|open| open.engine.volume().uuid) else { return Ok(()) };
    let here = show(ctx, name)?.uuid;
    if here != uuid {
        let why = format!(
            "volume {name:?} is {uuid} where the context has it open, and {here} at the target whose control socket was found: they are \
             two targets, and this one was left alone"
        );
        return Err(Refusal::new(errno::ENOENT, why));
    }
    Ok(())
}

fn check_size(size: u64) -> Result<(), Refusal> {
    if size > VOLUME_BYTES_MAX {
        let why = format!("{size} bytes are more than a volume can have, {VOLUME_BYTES_MAX}");
        return Err(Refusal::new(errno::EFBIG, why));
    }
    Ok(())
}

fn show(ctx: &OvsCtx, name: &str) -> Result<VolumeInfo, Refusal> {
    let path = format!("/v1/volumes/{}", segment(name));
    ctx.control.call(Method::GET, &path, None::<&()>).map_err(|error| of_control(&error))
}

/// Grows a volume.
pub(crate) fn truncate(ctx: &OvsCtx, name: &str, length: u64) -> Result<(), Refusal> {
    check_size(length)?;
    let size = show(ctx, name)?.size;
    if length < size {
        return Err(Refusal::new(
            errno::EPERM,
            format!("volume {name:?} has {size} bytes: it grows and does not shrink"),
        ));
    }
    let path = format!("/v1/volumes/{}/size", segment(name));
    let grown: Result<Value, _> = ctx.control.call(Method::PUT, &path, Some(&json!({ "size": length })));
    grown.map(drop).map_err(|error| of_control(&error))
}

/// Makes a volume of `size` bytes.
///
/// # Safety
/// The name ends in 0; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_create_volume(ctx: *mut OvsCtx, volume_name: *const c_char, size: u64) -> c_int {
    let create = || {
        // SAFETY: by the caller's promise.
        let (ctx, name) = unsafe { named(ctx, volume_name) }?;
        check_size(size)?;
        let body = json!({ "name": name, "size": size });
        let made: Result<Value, _> = ctx.control.call(Method::POST, "/v1/volumes", Some(&body));
        made.map(drop).map_err(|error| of_control(&error))
    };
    status(create())
}

/// Removes a volume that nobody has open.
///
/// # Safety
/// As for [`ovs_create_volume`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_remove_volume(ctx: *mut OvsCtx, volume_name: *const c_char) -> c_int {
    let remove = || {
        // SAFETY: by the caller's promise.
        let (ctx, name) = unsafe { named(ctx, volume_name) }?;
        let path = format!("/v1/volumes/{}", segment(name));
        patiently(|| {
            let gone: Result<Value, _> = ctx.control.call(Method::DELETE, &path, None::<&()>);
            gone.map(drop).map_err(|error| of_control(&error))
        })
    };
    status(remove())
}

/// Grows a volume; `EPERM` for a smaller size.
///
/// # Safety
/// As for [`ovs_create_volume`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_truncate_volume(ctx: *mut OvsCtx, volume_name: *const c_char, length: u64) -> c_int {
    let grow = || {
        // SAFETY: by the caller's promise.
        let (ctx, name) = unsafe { named(ctx, volume_name) }?;
        truncate(ctx, name, length)?;
        if let Some(open) = ctx.opened().filter(|open| open.volume == name) {
            open.engine.resized(length);
        }
        Ok(())
    };
    status(grow())
}

/// Writes all names, each with its 0, and returns the bytes. Where `*size` is too small it is set to what is needed: `ERANGE`.
///
/// # Safety
/// `names` has room for `*size` bytes; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_list_volumes(ctx: *mut OvsCtx, names: *mut c_char, size: *mut usize) -> c_int {
    let list = || {
        // SAFETY: by the caller's promise.
        let (ctx, size) = unsafe { (given(ctx)?, size.as_mut().ok_or_else(|| invalid("the size is NULL"))?) };
        let found: Result<Vec<VolumeInfo>, _> = ctx.control.call(Method::GET, "/v1/volumes", None::<&()>);
        let found = found.map_err(|error| of_control(&error))?;
        // SAFETY: by the caller's promise.
        unsafe { pack(found.iter().map(|volume| volume.name.as_str()), names, size) }
    };
    number(list())
}

/// Writes names, each with its 0.
///
/// # Safety
/// `names` has room for `*size` bytes.
pub(crate) unsafe fn pack<'a>(
    found: impl Iterator<Item = &'a str>,
    names: *mut c_char,
    size: &mut usize,
) -> Result<c_int, Refusal> {
    let mut packed = Vec::new();
    for name in found {
        packed.extend_from_slice(name.as_bytes());
        packed.push(0);
    }
    let bytes = c_int::try_from(packed.len()).map_err(|_| Refusal::new(errno::EFBIG, "too many names"))?;
    if *size < packed.len() || (names.is_null() && !packed.is_empty()) {
        *size = packed.len();
        return Err(Refusal::new(errno::ERANGE, format!("the names have {bytes} bytes")));
    }
    if !packed.is_empty() {
        // SAFETY: there is room for `*size` bytes by the caller's promise, and these are no more.
        unsafe { std::ptr::copy_nonoverlapping(packed.as_ptr().cast(), names, packed.len()) };
    }
    Ok(bytes)
}
