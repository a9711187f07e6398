//! Snapshots and clones by the control interface of the target on this machine.

use std::ffi::{CString, c_char, c_int};

use ringway_client::control::{Method, segment};
use ringway_client::{Refusal, errno};
use ringway_core::control::VolumeInfo;
use ringway_core::snapshot::asked::{SnapshotInfo, SnapshotState, TIMEOUT_MAX};
use ringway_core::snapshot::name::{check_snapshot_name, full_name, split_name};
use ringway_core::volume::check_name;
use serde_json::{Value, json};

use crate::attr::text;
use crate::ctx::OvsCtx;
use crate::errors::{invalid, number, of_control, patiently, status};
use crate::volumes::named;

/// `ovs_snapshot_info_t`: public.
#[repr(C)]
pub struct OvsSnapshotInfo {
    /// The snapshot's; NULL behind the last.
    pub name: *const c_char,
    /// The volume's bytes.
    pub size: u64,
}

const _: () = assert!(size_of::<OvsSnapshotInfo>() == 16);

/// A volume and the full name of its snapshot.
///
/// # Safety
/// Texts end in 0; `ctx` is of `ovs_ctx_new` and not being destroyed.
unsafe fn snapshot<'a>(
    ctx: *const OvsCtx,
    volume: *const c_char,
    snapshot: *const c_char,
) -> Result<(&'a OvsCtx, &'a str, &'a str), Refusal> {
    // SAFETY: by the caller's promise.
    let ((ctx, volume), snapshot) = unsafe { (named(ctx, volume)?, text("the snapshot's name", snapshot)?) };
    check_snapshot_name(snapshot).map_err(|bad| invalid(bad.to_string()))?;
    Ok((ctx, volume, snapshot))
}

fn path(volume: &str, snapshot: &str, rest: &str) -> String {
    format!("/v1/snapshots/{}{rest}", segment(&full_name(volume, snapshot)))
}

fn ask(ctx: &OvsCtx, method: Method, path: &str, body: Option<&Value>) -> Result<(), Refusal> {
    let answer: Result<Value, _> = ctx.control.call(method, path, body);
    answer.map(drop).map_err(|error| of_control(&error))
}

fn shown(ctx: &OvsCtx, volume: &str, snapshot: &str) -> Result<Vec<SnapshotInfo>, Refusal> {
    let found = ctx.control.call(Method::GET, &path(volume, snapshot, ""), None::<&()>);
    found.map_err(|error| of_control(&error))
}

fn create(ctx: &OvsCtx, volume: &str, snapshot: &str, timeout_ms: f64) -> Result<(), Refusal> {
    // A deadline beyond what the target takes as one is none.
    let bounded = if timeout_ms > TIMEOUT_MAX.as_secs_f64() * 1000.0 { 0.0 } else { timeout_ms };
    let body = json!({ "volumes": [volume], "name": snapshot, "timeout_ms": bounded });
    ask(ctx, Method::POST, "/v1/snapshots", Some(&body))
}

/// Makes a snapshot. `timeout` in seconds: until it is synced, or there is none and `ETIMEDOUT`; 0 waits for ever; a negative one returns
/// when it exists, synced or not.
///
/// # Safety
/// Texts end in 0; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_snapshot_create(
    ctx: *mut OvsCtx,
    volume_name: *const c_char,
    snap_name: *const c_char,
    timeout: i64,
) -> c_int {
    // SAFETY: by the caller's promise.
    let named = unsafe { snapshot(ctx, volume_name, snap_name) };
    status(named.and_then(|(ctx, volume, name)| create(ctx, volume, name, timeout as f64 * 1000.0)))
}

/// [`ovs_snapshot_create`] with a timeout in milliseconds.
///
/// # Safety
/// As for [`ovs_snapshot_create`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_snapshot_create_ms(
    ctx: *mut OvsCtx,
    volume_name: *const c_char,
    snap_name: *const c_char,
    timeout_ms: i64,
) -> c_int {
    // SAFETY: by the caller's promise.
    let named = unsafe { snapshot(ctx, volume_name, snap_name) };
    status(named.and_then(|(ctx, volume, name)| create(ctx, volume, name, timeout_ms as f64)))
}

/// Takes a volume back to a snapshot; later snapshots are gone. `ENOTEMPTY` where a clone lies over one of those; `EBUSY` where somebody has
/// it open, unless that is this context alone, with high availability: it comes back to the volume by itself. What is in flight meanwhile
/// may count before or after.
///
/// # Safety
/// As for [`ovs_snapshot_create`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_snapshot_rollback(
    ctx: *mut OvsCtx,
    volume_name: *const c_char,
    snap_name: *const c_char,
) -> c_int {
    // SAFETY: by the caller's promise.
    let named = unsafe { snapshot(ctx, volume_name, snap_name) };
    let roll_back = |(ctx, volume, name): (&OvsCtx, &str, &str)| {
        let rest = match ctx.returns_to(volume) {
            Some(host) => format!("/rollback?holder={host}"),
            None => "/rollback".to_owned(),
        };
        if let Some(open) = ctx.opened().filter(|open| open.volume == volume) {
            open.check_may_wait()?;
        }
        patiently(|| ask(ctx, Method::POST, &path(volume, name, &rest), None))
    };
    status(named.and_then(roll_back))
}

/// Removes a snapshot. `ENOTEMPTY` where a clone lies over it.
///
/// # Safety
/// As for [`ovs_snapshot_create`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_snapshot_remove(
    ctx: *mut OvsCtx,
    volume_name: *const c_char,
    snap_name: *const c_char,
) -> c_int {
    // SAFETY: by the caller's promise.
    let named = unsafe { snapshot(ctx, volume_name, snap_name) };
    status(named.and_then(|(ctx, volume, name)| patiently(|| ask(ctx, Method::DELETE, &path(volume, name, ""), None))))
}

/// 1: synced, 0: not yet.
///
/// # Safety
/// As for [`ovs_snapshot_create`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_snapshot_is_synced(
    ctx: *mut OvsCtx,
    volume_name: *const c_char,
    snap_name: *const c_char,
) -> c_int {
    let look = || {
        // SAFETY: by the caller's promise.
        let (ctx, volume, name) = unsafe { snapshot(ctx, volume_name, snap_name) }?;
        let found = shown(ctx, volume, name)?;
        Ok(c_int::from(found.iter().any(|info| info.state == SnapshotState::Synced)))
    };
    number(look())
}

/// When it was made: seconds since 1970, UTC.
///
/// # Safety
/// As for [`ovs_snapshot_create`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_snapshot_time(
    ctx: *mut OvsCtx,
    volume_name: *const c_char,
    snap_name: *const c_char,
) -> i64 {
    let look = || {
        // SAFETY: by the caller's promise.
        let (ctx, volume, name) = unsafe { snapshot(ctx, volume_name, snap_name) }?;
        let found = shown(ctx, volume, name)?;
        let first =
            found.first().ok_or_else(|| Refusal::new(errno::ENOENT, format!("there is no snapshot {name:?}")))?;
        Ok(first.created_unix_s as i64)
    };
    number(look())
}

/// Writes what snapshots there are, and one of NULL and 0 behind them; returns how many. Where `*max_snaps` is too small it is set to what
/// is needed: `ERANGE`.
///
/// # Safety
/// `snap_list` has room for `*max_snaps`; the rest as for [`ovs_snapshot_create`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_snapshot_list(
    ctx: *mut OvsCtx,
    volume_name: *const c_char,
    snap_list: *mut OvsSnapshotInfo,
    max_snaps: *mut c_int,
) -> c_int {
    let list = || {
        // SAFETY: by the caller's promise.
        let ((ctx, volume), max) =
            unsafe { (named(ctx, volume_name)?, max_snaps.as_mut().ok_or_else(|| invalid("max_snaps is NULL"))?) };
        let path = format!("/v1/volumes/{}", segment(volume));
        let shown: Result<VolumeInfo, _> = ctx.control.call(Method::GET, &path, None::<&()>);
        let size = shown.map_err(|error| of_control(&error))?.size;
        let path = format!("/v1/snapshots?volume={}", segment(volume));
        let found: Result<Vec<SnapshotInfo>, _> = ctx.control.call(Method::GET, &path, None::<&()>);
        let found = found.map_err(|error| of_control(&error))?;
        let existing = found.iter().filter(|info| info.state != SnapshotState::Pending);
        let names: Vec<&str> = existing.filter_map(|info| split_name(&info.name).1).collect();
        let count = c_int::try_from(names.len()).map_err(|_| Refusal::new(errno::EFBIG, "too many snapshots"))?;
        if *max <= count || snap_list.is_null() {
            *max = count + 1;
            return Err(Refusal::new(errno::ERANGE, format!("there are {count}, and one more marks the end")));
        }
        for (at, name) in names.into_iter().enumerate() {
            let name = CString::new(name).expect("a checked name has no 0").into_raw();
            // SAFETY: there is room for more than `count` by the caller's promise.
            unsafe { snap_list.add(at).write(OvsSnapshotInfo { name, size }) };
        }
        // SAFETY: as above.
        unsafe { snap_list.add(count as usize).write(OvsSnapshotInfo { name: std::ptr::null(), size: 0 }) };
        Ok(count)
    };
    number(list())
}

/// Frees the names of a list, up to its end; the list itself is the program's. Again, or NULL, does nothing.
///
/// # Safety
/// NULL, or filled by `ovs_snapshot_list`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_snapshot_list_free(snap_list: *mut OvsSnapshotInfo) {
    let mut at = snap_list;
    if at.is_null() {
        return;
    }
    // SAFETY: each up to the one with NULL was written by `ovs_snapshot_list`; names are taken out, so that none is freed twice.
    unsafe {
        while !(*at).name.is_null() {
            drop(CString::from_raw((*at).name.cast_mut()));
            (*at).name = std::ptr::null();
            at = at.add(1);
        }
    }
}

/// Makes a volume that lies over a snapshot.
///
/// # Safety
/// As for [`ovs_snapshot_create`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_volume_clone(
    ctx: *mut OvsCtx,
    volume_name: *const c_char,
    snap_name: *const c_char,
    clone_name: *const c_char,
) -> c_int {
    let clone = || {
        // SAFETY: by the caller's promise.
        let ((ctx, volume, name), clone) =
            unsafe { (snapshot(ctx, volume_name, snap_name)?, text("the clone's name", clone_name)?) };
        check_name(clone).map_err(|bad| invalid(bad.to_string()))?;
        let body = json!({ "snapshot": full_name(volume, name), "name": clone });
        ask(ctx, Method::POST, "/v1/clones", Some(&body))
    };
    status(clone())
}
