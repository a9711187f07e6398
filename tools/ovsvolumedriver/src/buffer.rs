//! `ovs_allocate` and its like: with transport shm, buffers that lie in the memory shared with the target and need no copy.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{c_int, c_void};

use ringway_client::{Area, RawBuffer, Refusal, errno};

use crate::ctx::{OvsCtx, given};
use crate::errors::{invalid, pointer, status};

/// What devices and pages like.
const ALIGNMENT: usize = 4096;

/// Where a buffer's bytes are.
enum Origin {
    /// In the memory that is shared with the target, which stays mapped as long as it.
    Shared(Area, RawBuffer),
    Heap(Layout),
}

/// `ovs_buffer_t`.
pub struct OvsBuffer {
    data: *mut u8,
    size: usize,
    origin: Origin,
}

fn allocate(ctx: &OvsCtx, size: usize) -> Result<OvsBuffer, Refusal> {
    if size == 0 {
        return Err(invalid("a buffer has at least one byte"));
    }
    let none = || Refusal::new(errno::ENOMEM, format!("there is no room for {size} bytes"));
    if let Some(area) = ctx.opened().and_then(|open| open.engine.area()) {
        let raw = area.alloc(size).ok_or_else(none)?;
        return Ok(OvsBuffer { data: raw.start, size, origin: Origin::Shared(area.clone(), raw) });
    }
    let layout = Layout::from_size_align(size, ALIGNMENT).map_err(|_| none())?;
    // SAFETY: the layout has a size, checked above.
    let data = unsafe { alloc_zeroed(layout) };
    if data.is_null() { Err(none()) } else { Ok(OvsBuffer { data, size, origin: Origin::Heap(layout) }) }
}

/// A buffer for requests. `ENOMEM` where there is no room.
///
/// # Safety
/// `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_allocate(ctx: *mut OvsCtx, size: usize) -> *mut OvsBuffer {
    let made = || {
        // SAFETY: by the caller's promise.
        let ctx = unsafe { given(ctx) }?;
        let buffer = Box::into_raw(Box::new(allocate(ctx, size)?));
        ctx.buffers().insert(buffer.addr());
        Ok(buffer)
    };
    pointer(made())
}

/// Its bytes; NULL for NULL.
///
/// # Safety
/// NULL, or of `ovs_allocate` and not deallocated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_buffer_data(ptr: *mut OvsBuffer) -> *mut c_void {
    // SAFETY: by the caller's promise.
    let buffer = unsafe { ptr.as_ref() }.ok_or_else(|| invalid("the buffer is NULL"));
    pointer(buffer.map(|buffer| buffer.data.cast()))
}

/// How many bytes it has; 0 for NULL.
///
/// # Safety
/// NULL, or of `ovs_allocate` and not deallocated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_buffer_size(ptr: *mut OvsBuffer) -> usize {
    // SAFETY: by the caller's promise.
    unsafe { ptr.as_ref() }.map_or(0, |buffer| buffer.size)
}

/// Gives a buffer back. `EFAULT` for what this context did not give out, or has back already.
///
/// # Safety
/// No request uses it; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_deallocate(ctx: *mut OvsCtx, ptr: *mut OvsBuffer) -> c_int {
    let free = || {
        // SAFETY: by the caller's promise.
        let ctx = unsafe { given(ctx) }?;
        if !ctx.buffers().remove(&ptr.addr()) {
            return Err(Refusal::new(errno::EFAULT, "this context did not give that buffer out, or has it back"));
        }
        // SAFETY: it came from `ovs_allocate`, and this is the one time that it leaves the context's set.
        let buffer = unsafe { Box::from_raw(ptr) };
        match buffer.origin {
            // SAFETY: it was allocated there, once, and no request uses it by the caller's promise.
            Origin::Shared(area, raw) => unsafe { area.free(raw) },
            // SAFETY: it was allocated with this layout.
            Origin::Heap(layout) => unsafe { dealloc(buffer.data, layout) },
        }
        Ok(())
    };
    status(free())
}
