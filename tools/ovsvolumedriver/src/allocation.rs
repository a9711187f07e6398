//! `ovs_block_status`: where a volume has data.

use std::ffi::c_int;

use ringway_client::control::{Method, segment};
use ringway_core::control::ChangedBlocks;

use crate::ctx::{Open, OvsCtx, given};
use crate::data::range;
use crate::errors::{invalid, number, of_control};
use ringway_client::{Refusal, What};

/// `ovs_extent_t`: public.
#[repr(C)]
pub struct OvsExtent {
    /// Bytes.
    pub nbytes: u64,
    /// 1: data, 0: a hole, which reads as zeros.
    pub data: c_int,
}

const _: () = assert!(size_of::<OvsExtent>() == 16);

/// What the target says of a volume from `cursor` on. Over a network the volume is named by its UUID as well, so that a target of this
/// machine which is not the one that serves it does not answer for it.
fn ask(ctx: &OvsCtx, open: &Open, cursor: u64) -> Result<ChangedBlocks, Refusal> {
    let mut path = format!("/v1/volumes/{}/allocated?cursor={cursor}", segment(&open.volume));
    if let Some(uuid) = open.engine.volume().uuid {
        path.push_str(&format!("&uuid={uuid}"));
    }
    ctx.control.call(Method::GET, &path, None::<&()>).map_err(|error| of_control(&error))
}

/// Writes what lies at `offset` and behind it, up to `nbytes` in at most `max` extents, and returns how many there are, at least one. They
/// may end before `nbytes`: ask again from there.
///
/// # Safety
/// `extents` has room for `max`; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_block_status(
    ctx: *mut OvsCtx,
    offset: i64,
    nbytes: u64,
    extents: *mut OvsExtent,
    max: c_int,
) -> c_int {
    let look = || {
        // SAFETY: by the caller's promise.
        let ctx = unsafe { given(ctx) }?;
        let open = ctx.open()?;
        let max = usize::try_from(max).ok().filter(|&max| max > 0 && !extents.is_null());
        let max = max.ok_or_else(|| invalid("there is no room for an extent"))?;
        let (offset, len) = range(open, What::Read, (offset, usize::try_from(nbytes).unwrap_or(usize::MAX)))?;
        if len == 0 {
            return Err(invalid(format!("there is nothing at {offset}: the volume ends before")));
        }
        let found = ask(ctx, open, offset)?.extents(offset, len as u64, max);
        for (at, &(nbytes, data)) in found.iter().enumerate() {
            // SAFETY: there are at most `max`, for which there is room by the caller's promise.
            unsafe { extents.add(at).write(OvsExtent { nbytes, data: data.into() }) };
        }
        Ok(found.len() as c_int)
    };
    number(look())
}
