//! Calls about data that wait for their end.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use ringway_client::{CallerMemory, Refusal, Request, What, errno};

use crate::ctx::{Mode, Open, OvsCtx, given};
use crate::errors::{invalid, number, status};
use crate::operation::{Ending, Operation};
use crate::volumes::truncate;

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
fn range(open: &Open, what: What, span: &Span) -> Result<(u64, usize), Refusal> {
    let offset = u64::try_from(span.offset).map_err(|_| invalid(format!("offset {} is negative", span.offset)))?;
    if span.nbytes == 0 || isize::try_from(span.nbytes).is_err() {
        return Err(invalid(format!("{} bytes cannot be moved", span.nbytes)));
    }
    let size = open.engine.volume().size;
    let end = offset.checked_add(span.nbytes as u64).filter(|&end| end <= size);
    match (end, what) {
        (Some(_), _) => Ok((offset, span.nbytes)),
        (None, What::Read) => Ok((offset, size.saturating_sub(offset) as usize)),
        (None, _) => {
            let why = format!("{} bytes at {offset}: the volume has {size}", span.nbytes);
            Err(Refusal::new(errno::EFBIG, why))
        }
    }
}

/// Begins a read or a write.
///
/// # Safety
/// The span's bytes are the library's until the operation has ended.
pub(crate) unsafe fn begin(open: &Open, what: What, span: &Span, operation: &Arc<Operation>) -> Result<(), Refusal> {
    let (offset, len) = range(open, what, span)?;
    // SAFETY: by the caller's promise.
    let memory = unsafe { CallerMemory::new(span.buf.cast(), len) }.ok_or_else(|| invalid("the buffer is NULL"))?;
    if len == 0 {
        // At the end of the volume there is nothing to read; a flush, which changes nothing, tells that on the library's thread.
        begin_range(open, What::Flush, (0, 0), operation);
        return Ok(());
    }
    let done = Ending { operation: Arc::clone(operation), bytes: len };
    open.submit(Request { what, offset, len: len as u64, memory: Some(memory), done });
    Ok(())
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

/// One request for each part, in order, and the bytes of all up to the first that is short.
///
/// # Safety
/// `iov` has `iovcnt` parts, and each is as for [`transfer`].
unsafe fn vectored(
    ctx: *const OvsCtx,
    what: What,
    (iov, iovcnt): (*const libc::iovec, c_int),
    offset: i64,
) -> Result<isize, Refusal> {
    let count = usize::try_from(iovcnt).ok().filter(|&count| (1..=1024).contains(&count) && !iov.is_null());
    let count = count.ok_or_else(|| invalid("iov has 1 to 1024 parts"))?;
    // SAFETY: by the caller's promise.
    let (parts, open) = unsafe { (std::slice::from_raw_parts(iov, count), volume(ctx, what)?) };
    open.check_may_wait()?;
    let mut at = offset;
    let mut spans = Vec::with_capacity(count);
    for part in parts.iter().filter(|part| part.iov_len > 0) {
        let span = Span { buf: part.iov_base, nbytes: part.iov_len, offset: at };
        range(open, what, &span)?;
        if part.iov_base.is_null() {
            return Err(invalid("a part of iov is NULL"));
        }
        let next = i64::try_from(part.iov_len).ok().and_then(|len| at.checked_add(len));
        at = next.ok_or_else(|| invalid("iov has more bytes than there are"))?;
        spans.push(span);
    }
    if spans.is_empty() {
        return Err(invalid("iov has no bytes"));
    }
    let begun: Vec<_> = spans.iter().map(|_| Operation::new(None)).collect();
    for (operation, span) in begun.iter().zip(&spans) {
        // SAFETY: by the caller's promise; all of them are waited for below.
        if let Err(refusal) = unsafe { begin(open, what, span, operation) } {
            // The volume has another size than a moment ago.
            operation.end(Err(refusal.errno));
        }
    }
    let mut bytes = 0;
    let mut failed = None;
    let mut short = false;
    for (operation, span) in begun.iter().zip(&spans) {
        match finish("transfer", operation) {
            Ok(moved) if !short => {
                bytes += moved;
                short = moved < span.nbytes;
            }
            Ok(_) => {}
            Err(refusal) => failed = failed.or(Some(refusal)),
        }
    }
    failed.map_or(Ok(bytes as isize), Err)
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

/// Writes from several buffers. Not one write: a snapshot or a crash may come between its parts.
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

/// # Safety
/// `ctx` is of `ovs_ctx_new` and not being destroyed.
unsafe fn clear(ctx: *const OvsCtx, what: What, offset: i64, nbytes: u64) -> Result<(), Refusal> {
    // SAFETY: by the caller's promise.
    let open = unsafe { volume(ctx, what) }?;
    open.check_may_wait()?;
    let nbytes = usize::try_from(nbytes).unwrap_or(usize::MAX);
    let (offset, len) = range(open, what, &Span { buf: std::ptr::null_mut(), nbytes, offset })?;
    let block = u64::from(open.engine.volume().block_bytes);
    if !offset.is_multiple_of(block) || !(len as u64).is_multiple_of(block) {
        return Err(invalid(format!("{len} bytes at {offset} are not whole blocks of {block}")));
    }
    run_range(open, what, (offset, len as u64))
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

/// Grows the context's volume.
///
/// # Safety
/// `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_truncate(ctx: *mut OvsCtx, length: u64) -> c_int {
    let grow = || {
        // SAFETY: by the caller's promise.
        let (ctx, open) = unsafe { (given(ctx)?, volume(ctx, What::Write)?) };
        truncate(ctx, &open.volume, length)?;
        open.engine.resized(length);
        Ok(())
    };
    status(grow())
}
