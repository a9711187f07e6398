//! Calls about data that do not wait, and completions.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use ringway_client::{Refusal, What, errno};

use crate::ctx::{Open, OvsCtx, given};
use crate::data::{Span, begin, begin_range, begin_vectored, volume, whole_blocks};
use crate::errors::{invalid, number, pointer, status};
use crate::live::{self, Kind};
use crate::operation::{Deadline, Operation, OvsCallback, OvsCompletion};

/// `struct ovs_aiocb`: public, 32 bytes.
#[repr(C)]
pub struct OvsAiocb {
    /// Where the bytes are.
    pub aio_buf: *mut c_void,
    /// From which byte of the volume on.
    pub aio_offset: i64,
    /// How many.
    pub aio_nbytes: usize,
    /// The library's.
    pub request: *const Operation,
}

const _: () = assert!(size_of::<OvsAiocb>() == 32);

/// # Safety
/// NULL, or a control block that nobody else changes during the call.
unsafe fn block<'a>(aiocb: *mut OvsAiocb) -> Result<&'a mut OvsAiocb, Refusal> {
    // SAFETY: by the caller's promise.
    unsafe { aiocb.as_mut() }.ok_or_else(|| invalid("the control block is NULL"))
}

/// The operation of a control block.
///
/// # Safety
/// As for [`block`]; it was filled by a call that began a request, or zeroed.
unsafe fn running<'a>(aiocb: *mut OvsAiocb) -> Result<&'a Operation, Refusal> {
    // SAFETY: by the caller's promise; `ovs_aio_finish` has not been called, or has set it to null.
    unsafe { block(aiocb)?.request.as_ref() }.ok_or_else(|| invalid("the control block has no request"))
}

/// # Safety
/// NULL, or of `ovs_aio_create_completion`.
unsafe fn completion(at: *mut OvsCompletion) -> Result<Arc<OvsCompletion>, Refusal> {
    if !live::knows(Kind::Completion, at) {
        return Err(invalid("this is no completion of ovs_aio_create_completion, or was released"));
    }
    // SAFETY: it came from `Arc::into_raw` and was not released: there is a reference to count from.
    Ok(unsafe {
        Arc::increment_strong_count(at);
        Arc::from_raw(at)
    })
}

/// # Safety
/// The control block and its bytes are the library's until `ovs_aio_finish`; the rest as for [`given`].
unsafe fn start(
    ctx: *const OvsCtx,
    aiocb: *mut OvsAiocb,
    what: What,
    completed: Option<*mut OvsCompletion>,
) -> Result<(), Refusal> {
    // SAFETY: by the caller's promise.
    unsafe {
        let open = volume(ctx, what)?;
        let aiocb = block(aiocb)?;
        let completed = completed.map(|at| completion(at)).transpose()?;
        let span = Span { buf: aiocb.aio_buf, nbytes: aiocb.aio_nbytes, offset: aiocb.aio_offset };
        // A callback may come before this returns, and finds the request there: it is written first.
        let operation = Operation::new(completed);
        aiocb.request = Arc::into_raw(Arc::clone(&operation));
        begin(open, what, &span, &operation).inspect_err(|_| {
            drop(Arc::from_raw(std::mem::replace(&mut aiocb.request, std::ptr::null())));
        })
    }
}

/// Begins a read.
///
/// # Safety
/// The control block and its bytes are the library's until `ovs_aio_finish`; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_read(ctx: *mut OvsCtx, ovs_aiocbp: *mut OvsAiocb) -> c_int {
    // SAFETY: by the caller's promise.
    status(unsafe { start(ctx, ovs_aiocbp, What::Read, None) })
}

/// Begins a write.
///
/// # Safety
/// As for [`ovs_aio_read`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_write(ctx: *mut OvsCtx, ovs_aiocbp: *mut OvsAiocb) -> c_int {
    // SAFETY: by the caller's promise.
    status(unsafe { start(ctx, ovs_aiocbp, What::Write, None) })
}

/// Begins a read; the completion's callback runs at its end.
///
/// # Safety
/// As for [`ovs_aio_read`]; the completion is of `ovs_aio_create_completion`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_readcb(
    ctx: *mut OvsCtx,
    ovs_aiocbp: *mut OvsAiocb,
    completion: *mut OvsCompletion,
) -> c_int {
    // SAFETY: by the caller's promise.
    status(unsafe { start(ctx, ovs_aiocbp, What::Read, Some(completion)) })
}

/// Begins a write; the completion's callback runs at its end.
///
/// # Safety
/// As for [`ovs_aio_readcb`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_writecb(
    ctx: *mut OvsCtx,
    ovs_aiocbp: *mut OvsAiocb,
    completion: *mut OvsCompletion,
) -> c_int {
    // SAFETY: by the caller's promise.
    status(unsafe { start(ctx, ovs_aiocbp, What::Write, Some(completion)) })
}

/// Begins what has no control block: `ovs_aio_return_completion` says how it has ended.
///
/// # Safety
/// The completion is of `ovs_aio_create_completion`; `ctx` is of `ovs_ctx_new` and not being destroyed; the rest is up to `begin`.
unsafe fn start_alone(
    ctx: *const OvsCtx,
    what: What,
    completion: *mut OvsCompletion,
    begin: impl FnOnce(&Open, &Arc<Operation>) -> Result<(), Refusal>,
) -> c_int {
    let start = || {
        // SAFETY: by the caller's promise.
        let (open, completed) = unsafe { (volume(ctx, what)?, self::completion(completion)?) };
        begin(open, &Operation::new(Some(completed)))
    };
    status(start())
}

/// Begins a read into several buffers, as one request without a control block: `ovs_aio_return_completion` says how it has ended.
///
/// # Safety
/// `iov` has `iovcnt` parts, and what they name, not they themselves, is the library's until the callback; the rest as for
/// [`ovs_aio_flushcb`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_readvcb(
    ctx: *mut OvsCtx,
    iov: *const libc::iovec,
    iovcnt: c_int,
    offset: i64,
    completion: *mut OvsCompletion,
) -> c_int {
    // SAFETY: by the caller's promise.
    unsafe {
        start_alone(ctx, What::Read, completion, |open, operation| {
            begin_vectored(open, What::Read, (iov, iovcnt), offset, operation)
        })
    }
}

/// Begins a write from several buffers, as [`ovs_aio_readvcb`] a read.
///
/// # Safety
/// As for [`ovs_aio_readvcb`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_writevcb(
    ctx: *mut OvsCtx,
    iov: *const libc::iovec,
    iovcnt: c_int,
    offset: i64,
    completion: *mut OvsCompletion,
) -> c_int {
    // SAFETY: by the caller's promise.
    unsafe {
        start_alone(ctx, What::Write, completion, |open, operation| {
            begin_vectored(open, What::Write, (iov, iovcnt), offset, operation)
        })
    }
}

/// Begins to give the space of whole blocks back.
///
/// # Safety
/// As for [`ovs_aio_flushcb`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_discardcb(
    ctx: *mut OvsCtx,
    offset: i64,
    nbytes: u64,
    completion: *mut OvsCompletion,
) -> c_int {
    // SAFETY: by the caller's promise.
    unsafe { start_clearing(ctx, What::Trim, (offset, nbytes), completion) }
}

/// Begins to make whole blocks read as zeros.
///
/// # Safety
/// As for [`ovs_aio_flushcb`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_write_zeroescb(
    ctx: *mut OvsCtx,
    offset: i64,
    nbytes: u64,
    completion: *mut OvsCompletion,
) -> c_int {
    // SAFETY: by the caller's promise.
    unsafe { start_clearing(ctx, What::Zero, (offset, nbytes), completion) }
}

/// # Safety
/// As for [`ovs_aio_flushcb`].
unsafe fn start_clearing(
    ctx: *const OvsCtx,
    what: What,
    (offset, nbytes): (i64, u64),
    completion: *mut OvsCompletion,
) -> c_int {
    // SAFETY: by the caller's promise.
    unsafe {
        start_alone(ctx, what, completion, |open, operation| {
            begin_range(open, what, whole_blocks(open, what, offset, nbytes)?, operation);
            Ok(())
        })
    }
}

/// Begins a flush, which has no control block: `ovs_aio_return_completion` says how it has ended.
///
/// # Safety
/// The completion is of `ovs_aio_create_completion`; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_flushcb(ctx: *mut OvsCtx, completion: *mut OvsCompletion) -> c_int {
    // SAFETY: by the caller's promise.
    unsafe {
        start_alone(ctx, What::Flush, completion, |open, operation| {
            begin_range(open, What::Flush, (0, 0), operation);
            Ok(())
        })
    }
}

/// 0, `EINPROGRESS`, or the errno with which it has failed; -1 where there is no request.
///
/// # Safety
/// The control block was begun or zeroed; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_error(ctx: *mut OvsCtx, ovs_aiocbp: *mut OvsAiocb) -> c_int {
    // SAFETY: by the caller's promise.
    let result = unsafe { given(ctx).and_then(|_| running(ovs_aiocbp)) };
    number(result.map(|operation| match operation.result() {
        None => errno::EINPROGRESS,
        Some(Ok(_)) => 0,
        Some(Err(number)) => number,
    }))
}

/// Bytes, or -1 and the errno with which it has failed; `EINPROGRESS` while it runs.
///
/// # Safety
/// As for [`ovs_aio_error`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_return(ctx: *mut OvsCtx, ovs_aiocbp: *mut OvsAiocb) -> isize {
    let result = || {
        // SAFETY: by the caller's promise.
        let operation = unsafe { given(ctx).and_then(|_| running(ovs_aiocbp)) }?;
        let ended = operation.result().ok_or_else(|| Refusal::new(errno::EINPROGRESS, "it has not ended"))?;
        ended.map(|bytes| bytes as isize).map_err(|number| Refusal::new(number, "the request failed"))
    };
    number(result())
}

/// Waits until it has ended, or the moment has come: `EAGAIN`. NULL waits for ever.
///
/// # Safety
/// As for [`ovs_aio_error`]; `timeout` is NULL or readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_suspend(
    ctx: *mut OvsCtx,
    ovs_aiocb: *mut OvsAiocb,
    timeout: *const libc::timespec,
) -> c_int {
    let wait = || {
        // SAFETY: by the caller's promise.
        unsafe {
            given(ctx)?.open()?.check_may_wait()?;
            let deadline = timeout.as_ref().map(Deadline::of).transpose()?;
            running(ovs_aiocb)?.wait(deadline)
        }
    };
    status(wait())
}

/// Requests are not cancelled: `ENOSYS`.
///
/// # Safety
/// None of its arguments is looked at.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_cancel(_ctx: *mut OvsCtx, _ovs_aiocbp: *mut OvsAiocb) -> c_int {
    status(Err(Refusal::new(errno::ENOSYS, "a request is not cancelled: wait for its end")))
}

/// Frees what the library has in the control block. `EINPROGRESS` while the request runs, `EINVAL` when it was finished before.
///
/// # Safety
/// As for [`ovs_aio_error`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_finish(ctx: *mut OvsCtx, ovs_aiocbp: *mut OvsAiocb) -> c_int {
    let finish = || {
        // SAFETY: by the caller's promise.
        unsafe {
            given(ctx)?;
            if running(ovs_aiocbp)?.result().is_none() {
                return Err(Refusal::new(errno::EINPROGRESS, "it has not ended: its buffer is in use"));
            }
            drop(Arc::from_raw(std::mem::replace(&mut block(ovs_aiocbp)?.request, std::ptr::null())));
        }
        Ok(())
    };
    status(finish())
}

/// A completion for one request.
#[unsafe(no_mangle)]
pub extern "C" fn ovs_aio_create_completion(complete_cb: OvsCallback, arg: *mut c_void) -> *mut OvsCompletion {
    let made = complete_cb.ok_or_else(|| invalid("the callback is NULL"));
    pointer(made.map(|callback| {
        let made = Arc::into_raw(Arc::new(OvsCompletion::new(callback, arg)));
        live::enter(Kind::Completion, made);
        made.cast_mut()
    }))
}

/// What its request returns; `EINPROGRESS` while it runs.
///
/// # Safety
/// NULL, or of `ovs_aio_create_completion`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_return_completion(completion: *mut OvsCompletion) -> isize {
    // SAFETY: by the caller's promise.
    let result = unsafe { self::completion(completion) }.and_then(|completed| completed.result());
    number(result.map(|bytes| bytes as isize))
}

/// Waits until `ovs_aio_signal_completion`, or the moment has come: `EAGAIN`. NULL waits for ever.
///
/// # Safety
/// As for [`ovs_aio_return_completion`]; `timeout` is NULL or readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_wait_completion(
    completion: *mut OvsCompletion,
    timeout: *const libc::timespec,
) -> c_int {
    let wait = || {
        // SAFETY: by the caller's promise.
        let (completed, timeout) = unsafe { (self::completion(completion)?, timeout.as_ref()) };
        completed.wait(timeout.map(Deadline::of).transpose()?)
    };
    status(wait())
}

/// Wakes who waits for it.
///
/// # Safety
/// As for [`ovs_aio_return_completion`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_signal_completion(completion: *mut OvsCompletion) -> c_int {
    // SAFETY: by the caller's promise.
    status(unsafe { self::completion(completion) }.map(|completed| completed.signal()))
}

/// Frees it; its request may still run.
///
/// # Safety
/// As for [`ovs_aio_return_completion`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_aio_release_completion(completion: *mut OvsCompletion) -> c_int {
    if !live::leave(Kind::Completion, completion) {
        return status(Err(invalid("this is no completion of ovs_aio_create_completion, or was released before")));
    }
    // SAFETY: it came from `Arc::into_raw`, and this is the one time that it leaves.
    drop(unsafe { Arc::from_raw(completion) });
    0
}
