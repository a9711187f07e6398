//! Calls about data that wait for their end.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use ringway_client::{CallerMemory, Refusal, Request, What, errno};

use crate::ctx::{Mode, Open, OvsCtx, given};
use crate::errors::{invalid, number, status};
use crate::operation::{Ending, Operation};
use crate::volumes::{check_target, truncate};

/// Parts of one transfer at most: IOV_MAX.
const PARTS_MAX: usize = 1024;

/// A request of the program's: where its bytes are, how many, and from which byte of the volume on.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) buf: *mut c_void,
    pub(crate) nbytes: usize,
    pub(crate) offset: i64,
}

/// The volume of a context that may do this.
///
/// # Safety
/// As for [`given`].
pub(crate) unsafe fn volume<'a>(ctx: *const OvsCtx, what: What) -> Result<&'a Open, Refusal> {
    // SAFETY: by the caller's promise.
    let open = unsafe { given(ctx) }?.open()?;
    let refused = match what {
        What::Read => (open.mode == Mode::Write).then_some("opened with O_WRONLY: it is not read"),
        _ => (open.mode == Mode::Read).then_some("opened with O_RDONLY: it is not changed"),
    };
    match refused {
        Some(why) => Err(Refusal::new(errno::EBADF, format!("volume {:?} was {why}", open.volume))),
        None => Ok(open),
    }
}

/// How much of a span there is, and where it begins.
pub(crate) fn range(open: &Open, what: What, (offset, nbytes): (i64, usize)) -> Result<(u64, usize), Refusal> {
    let offset = u64::try_from(offset).map_err(|_| invalid(format!("offset {offset} is negative")))?;
    if nbytes == 0 || isize::try_from(nbytes).is_err() {
        return Err(invalid(format!("{nbytes} bytes cannot be moved")));
    }
    let size = open.engine.volume().size;
    let end = offset.checked_add(nbytes as u64).filter(|&end| end <= size);
    match (end, what) {
        (Some(_), _) => Ok((offset, nbytes)),
        (None, What::Read) => Ok((offset, size.saturating_sub(offset) as usize)),
        (None, _) => {
            let why = format!("{nbytes} bytes at {offset}: the volume has {size}");
            Err(Refusal::new(errno::EFBIG, why))
        }
    }
}

/// Begins a read or a write.
///
/// # Safety
/// The span's bytes are the library's until the operation has ended.
pub(crate) unsafe fn begin(open: &Open, what: What, span: &Span, operation: &Arc<Operation>) -> Result<(), Refusal> {
    // SAFETY: by the caller's promise.
    let memory = unsafe { CallerMemory::new(span.buf.cast(), span.nbytes) };
    begin_at(open, what, (span.offset, span.nbytes), memory.ok_or_else(|| invalid("the buffer is NULL"))?, operation)
}

fn begin_at(
    open: &Open,
    what: What,
    (offset, nbytes): (i64, usize),
    mut memory: CallerMemory,
    operation: &Arc<Operation>,
) -> Result<(), Refusal> {
    let (offset, len) = range(open, what, (offset, nbytes))?;
    if len == 0 {
        // At the end of the volume there is nothing to read; a flush, which changes nothing, tells that on the library's thread.
        begin_range(open, What::Flush, (0, 0), operation);
        return Ok(());
    }
    drop(memory.split_off(len));
    let done = Ending { operation: Arc::clone(operation), bytes: len };
    open.submit(Request { what, offset, len: len as u64, memory: Some(memory), done });
    Ok(())
}

/// Begins a read or a write of several parts, as one.
///
/// # Safety
/// `iov` has `iovcnt` parts, whose bytes are the library's until the operation has ended.
pub(crate) unsafe fn begin_vectored(
    open: &Open,
    what: What,
    (iov, iovcnt): (*const libc::iovec, c_int),
    offset: i64,
    operation: &Arc<Operation>,
) -> Result<(), Refusal> {
    let count = usize::try_from(iovcnt).ok().filter(|&count| (1..=PARTS_MAX).contains(&count) && !iov.is_null());
    let count = count.ok_or_else(|| invalid(format!("iov has 1 to {PARTS_MAX} parts")))?;
    // SAFETY: by the caller's promise.
    let parts = unsafe { std::slice::from_raw_parts(iov, count) };
    let bytes = parts.iter().try_fold(0_usize, |sum, part| sum.checked_add(part.iov_len));
    let bytes = bytes.ok_or_else(|| invalid("iov has more bytes than there are"))?;
    range(open, what, (offset, bytes))?;
    // SAFETY: by the caller's promise.
    let memory = unsafe { CallerMemory::gather(parts.iter().map(|part| (part.iov_base.cast(), part.iov_len))) };
    begin_at(open, what, (offset, bytes), memory.ok_or_else(|| invalid("a part of iov is NULL"))?, operation)
}

/// Begins what moves no data.
pub(crate) fn begin_range(open: &Open, what: What, (offset, len): (u64, u64), operation: &Arc<Operation>) {
    let done = Ending { operation: Arc::clone(operation), bytes: 0 };
    open.submit(Request { what, offset, len, memory: None, done });
}

/// Does what moves no data.
fn run_range(open: &Open, what: What, range: (u64, u64)) -> Result<(), Refusal> {
    let operation = Operation::new(None);
    begin_range(open, what, range, &operation);
    finish("request", &operation).map(drop)
}

/// Waits for an operation.
fn finish(what: &str, operation: &Operation) -> Result<usize, Refusal> {
    operation.wait(None)?;
    let result = operation.result().expect("it has ended");
    result.map_err(|number| Refusal::new(number, format!("the {what} failed")))
}

/// # Safety
/// As for [`begin`], during the call.
unsafe fn transfer(ctx: *const OvsCtx, what: What, span: &Span) -> Result<isize, Refusal> {
    // SAFETY: by the caller's promise.
    let operation = unsafe {
        let open = volume(ctx, what)?;
        open.check_may_wait()?;
        let operation = Operation::new(None);
        begin(open, what, span, &operation)?;
        operation
    };
    finish(if what == What::Read { "read" } else { "write" }, &operation).map(|bytes| bytes as isize)
}

/// Reads, and returns the bytes that there were up to the volume's end.
///
/// # Safety
/// `buf` has room for `nbytes`; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_read(ctx: *mut OvsCtx, buf: *mut c_void, nbytes: usize, offset: i64) -> isize {
    // SAFETY: by the caller's promise.
    number(unsafe { transfer(ctx, What::Read, &Span { buf, nbytes, offset }) })
}

/// Writes.
///
/// # Safety
/// `buf` has `nbytes`; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_write(ctx: *mut OvsCtx, buf: *const c_void, nbytes: usize, offset: i64) -> isize {
    // SAFETY: by the caller's promise; what is written is only read.
    number(unsafe { transfer(ctx, What::Write, &Span { buf: buf.cast_mut(), nbytes, offset }) })
}

/// # Safety
/// As for [`begin_vectored`], during the call.
unsafe fn vectored(
    ctx: *const OvsCtx,
    what: What,
    iov: (*const libc::iovec, c_int),
    offset: i64,
) -> Result<isize, Refusal> {
    // SAFETY: by the caller's promise.
    let operation = unsafe {
        let open = volume(ctx, what)?;
        open.check_may_wait()?;
        let operation = Operation::new(None);
        begin_vectored(open, what, iov, offset, &operation)?;
        operation
    };
    finish("transfer", &operation).map(|bytes| bytes as isize)
}

/// Reads into several buffers.
///
/// # Safety
/// `iov` has `iovcnt` parts with room; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_readv(ctx: *mut OvsCtx, iov: *const libc::iovec, iovcnt: c_int, offset: i64) -> isize {
    // SAFETY: by the caller's promise.
    number(unsafe { vectored(ctx, What::Read, (iov, iovcnt), offset) })
}

/// Writes from several buffers.
///
/// # Safety
/// `iov` has `iovcnt` parts; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_writev(ctx: *mut OvsCtx, iov: *const libc::iovec, iovcnt: c_int, offset: i64) -> isize {
    // SAFETY: by the caller's promise.
    number(unsafe { vectored(ctx, What::Write, (iov, iovcnt), offset) })
}

/// Everything that has ended before is on stable storage afterwards.
///
/// # Safety
/// `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_flush(ctx: *mut OvsCtx) -> c_int {
    let flush = || {
        // SAFETY: by the caller's promise.
        let open = unsafe { volume(ctx, What::Flush) }?;
        open.check_may_wait()?;
        run_range(open, What::Flush, (0, 0))
    };
    status(flush())
}

/// Whole blocks that `what` is about.
pub(crate) fn whole_blocks(open: &Open, what: What, offset: i64, nbytes: u64) -> Result<(u64, u64), Refusal> {
    let (offset, len) = range(open, what, (offset, usize::try_from(nbytes).unwrap_or(usize::MAX)))?;
    let block = u64::from(open.engine.volume().block_bytes);
    if !offset.is_multiple_of(block) || !(len as u64).is_multiple_of(block) {
        return Err(invalid(format!("{len} bytes at {offset} are not whole blocks of {block}")));
    }
    Ok((offset, len as u64))
}

/// # Safety
/// `ctx` is of `ovs_ctx_new` and not being destroyed.
unsafe fn clear(ctx: *const OvsCtx, what: What, offset: i64, nbytes: u64) -> Result<(), Refusal> {
    // SAFETY: by the caller's promise.
    let open = unsafe { volume(ctx, what) }?;
    open.check_may_wait()?;
    run_range(open, what, whole_blocks(open, what, offset, nbytes)?)
}

/// Gives the space of whole blocks back.
///
/// # Safety
/// `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_discard(ctx: *mut OvsCtx, offset: i64, nbytes: u64) -> c_int {
    // SAFETY: by the caller's promise.
    status(unsafe { clear(ctx, What::Trim, offset, nbytes) })
}

/// Whole blocks read as zeros afterwards.
///
/// # Safety
/// `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_write_zeroes(ctx: *mut OvsCtx, offset: i64, nbytes: u64) -> c_int {
    // SAFETY: by the caller's promise.
    status(unsafe { clear(ctx, What::Zero, offset, nbytes) })
}

/// Fills `st_size` and `st_blksize`; the rest is 0.
///
/// # Safety
/// `buf` is writable; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_stat(ctx: *mut OvsCtx, buf: *mut libc::stat) -> c_int {
    let stat = || {
        // SAFETY: by the caller's promise; a stat of zeros is one.
        unsafe {
            let open = given(ctx)?.open()?;
            if buf.is_null() {
                return Err(invalid("the buffer is NULL"));
            }
            let mut found: libc::stat = std::mem::zeroed();
            found.st_size = open.engine.volume().size as i64;
            found.st_blksize = 512;
            buf.write(found);
        }
        Ok(())
    };
    status(stat())
}

/// Bytes of a logical block of the context's volume, 512 or 4096: discards and zeroes are of whole ones.
///
/// # Safety
/// `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_block_bytes(ctx: *mut OvsCtx) -> c_int {
    // SAFETY: by the caller's promise.
    let open = unsafe { given(ctx) }.and_then(OvsCtx::open);
    number(open.map(|open| open.engine.volume().block_bytes as c_int))
}

/// Grows the context's volume.
///
/// # Safety
/// `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_truncate(ctx: *mut OvsCtx, length: u64) -> c_int {
    let grow = || {
        // SAFETY: by the caller's promise.
        let (ctx, open) = unsafe { (given(ctx)?, volume(ctx, What::Write)?) };
        check_target(ctx, &open.volume)?;
        truncate(ctx, &open.volume, length)?;
        open.engine.resized(length);
        Ok(())
    };
    status(grow())
}
