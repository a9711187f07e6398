//! `ovs_ctx_attr_*`: what a context is made with.

use std::env;
use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};

use ringway_client::control::Way;
use ringway_client::{Addresses, BadAddress, Refusal, Transport, errno};

use crate::errors::{invalid, of_control, status};
use crate::live::{self, Kind};

/// The port that clients of Open vStorage dial, and that a target of ours listens on as well.
const PORT_DEFAULT: u16 = 21321;
/// Requests in flight, where nothing is said.
const DEPTH_DEFAULT: u64 = 64;
/// More in flight than this do not make anything faster; what is beyond waits.
pub(crate) const DEPTH_MAX: u64 = 4096;

/// Where the target is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Shm,
    Tcp(Addresses),
    Rdma(Addresses),
}

/// `ovs_ctx_attr_t`.
#[derive(Clone, Debug)]
pub struct OvsContextAttr {
    /// None until `ovs_ctx_attr_set_transport`.
    pub(crate) place: Option<Place>,
    pub(crate) depth: u64,
    pub(crate) high_availability: bool,
    /// Without the lease of one writer.
    pub(crate) shared: bool,
    /// Who is asked about volumes and snapshots; none: the target of this machine.
    pub(crate) control: Option<Way>,
}

/// A text of the program's; `EINVAL` for NULL and for what is not UTF-8.
///
/// # Safety
/// NULL, or a text that ends in 0 and stays as it is during the call.
pub(crate) unsafe fn text<'a>(what: &str, from: *const c_char) -> Result<&'a str, Refusal> {
    if from.is_null() {
        return Err(invalid(format!("{what} is NULL")));
    }
    // SAFETY: not null, and a text by the caller's promise.
    let text = unsafe { CStr::from_ptr(from) };
    text.to_str().map_err(|_| invalid(format!("{what} is not UTF-8")))
}

/// The attributes that the program means.
///
/// # Safety
/// Nobody changes or destroys them during the call.
unsafe fn given<'a>(attr: *mut OvsContextAttr) -> Result<&'a mut OvsContextAttr, Refusal> {
    if !live::knows(Kind::Attributes, attr) {
        return Err(invalid("these are no attributes of ovs_ctx_attr_new, or were destroyed"));
    }
    // SAFETY: it came from `ovs_ctx_attr_new` and was not destroyed; nobody else uses it by the caller's promise.
    Ok(unsafe { &mut *attr })
}

/// A copy of attributes, for a context.
///
/// # Safety
/// As for `given`.
pub(crate) unsafe fn copy(attr: *const OvsContextAttr) -> Result<OvsContextAttr, Refusal> {
    // SAFETY: by the caller's promise.
    unsafe { given(attr.cast_mut()) }.map(|attr| attr.clone())
}

/// New attributes: no transport, 64 requests in flight, high availability off.
#[unsafe(no_mangle)]
pub extern "C" fn ovs_ctx_attr_new() -> *mut OvsContextAttr {
    let attr =
        OvsContextAttr { place: None, depth: DEPTH_DEFAULT, high_availability: false, shared: false, control: None };
    let attr = Box::into_raw(Box::new(attr));
    live::enter(Kind::Attributes, attr);
    attr
}

/// Frees attributes; contexts made with them go on.
///
/// # Safety
/// No other call uses them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_ctx_attr_destroy(attr: *mut OvsContextAttr) -> c_int {
    if !live::leave(Kind::Attributes, attr) {
        return status(Err(invalid("these are no attributes of ovs_ctx_attr_new, or were destroyed before")));
    }
    // SAFETY: it came from `ovs_ctx_attr_new`, and this is the one time that it leaves.
    drop(unsafe { Box::from_raw(attr) });
    0
}

/// Says how the target is reached. `host` is resolved at once.
///
/// # Safety
/// Texts end in 0; no other call uses the attributes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_ctx_attr_set_transport(
    attr: *mut OvsContextAttr,
    transport: *const c_char,
    host: *const c_char,
    port: c_int,
) -> c_int {
    let set = || {
        // SAFETY: by the caller's promise.
        let attr = unsafe { given(attr) }?;
        let transport = if transport.is_null() {
            Transport::Shm
        } else {
            // SAFETY: by the caller's promise.
            Transport::named(unsafe { text("transport", transport) }?)?
        };
        attr.place = Some(match transport {
            Transport::Shm => Place::Shm,
            // SAFETY: by the caller's promise.
            Transport::Tcp => Place::Tcp(resolve(unsafe { text("host", host) }?, port)?),
            // SAFETY: by the caller's promise.
            Transport::Rdma => Place::Rdma(resolve(unsafe { text("host", host) }?, port)?),
        });
        Ok(())
    };
    status(set())
}

fn resolve(host: &str, port: c_int) -> Result<Addresses, Refusal> {
    let port = u16::try_from(port).map_err(|_| invalid(format!("port {port} is not a number from 0 to 65535")))?;
    let port = if port == 0 { PORT_DEFAULT } else { port };
    Addresses::resolve(host, port).map_err(|error| {
        let number = if matches!(error, BadAddress::Unresolved { .. }) { errno::EIO } else { errno::EINVAL };
        Refusal::new(number, error.to_string())
    })
}

/// Requests in flight; more wait.
///
/// # Safety
/// No other call uses the attributes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_ctx_attr_set_network_qdepth(attr: *mut OvsContextAttr, qdepth: u64) -> c_int {
    let set = || {
        if qdepth == 0 {
            return Err(invalid("a queue depth of 0 moves nothing"));
        }
        // SAFETY: by the caller's promise.
        unsafe { given(attr) }?.depth = qdepth.min(DEPTH_MAX);
        Ok(())
    };
    status(set())
}

/// A target that goes away is waited for, and what was in flight is sent again.
///
/// # Safety
/// No other call uses the attributes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_ctx_attr_enable_ha(attr: *mut OvsContextAttr) -> c_int {
    // SAFETY: by the caller's promise.
    status(unsafe { given(attr) }.map(|attr| attr.high_availability = true))
}

/// The volume may have other writers: the context does not take the lease of the one writer.
///
/// # Safety
/// No other call uses the attributes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_ctx_attr_share_volume(attr: *mut OvsContextAttr) -> c_int {
    // SAFETY: by the caller's promise.
    status(unsafe { given(attr) }.map(|attr| attr.shared = true))
}

/// A file that the program names, or the environment.
///
/// # Safety
/// As for [`text`].
unsafe fn file(what: &str, given: *const c_char, variable: &str) -> Result<Option<PathBuf>, Refusal> {
    if given.is_null() {
        return Ok(env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from));
    }
    // SAFETY: by the caller's promise.
    unsafe { text(what, given) }.map(|path| Some(path.into()))
}

/// Says who is asked about volumes, snapshots and streams: `https://HOST:PORT` with the file of who signed its certificate and the file of
/// its token, which are read at once; or the path of a control socket. The target of this machine where that is NULL.
///
/// # Safety
/// Texts end in 0; no other call uses the attributes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_ctx_attr_set_control(
    attr: *mut OvsContextAttr,
    control: *const c_char,
    authority_file: *const c_char,
    token_file: *const c_char,
) -> c_int {
    let set = || {
        // SAFETY: by the caller's promise.
        let attr = unsafe { given(attr) }?;
        if control.is_null() {
            attr.control = None;
            return Ok(());
        }
        // SAFETY: by the caller's promise.
        let (control, authority, token) = unsafe {
            (
                text("control", control)?,
                file("the authority's file", authority_file, "RINGWAY_CONTROL_CA")?,
                file("the token's file", token_file, "RINGWAY_CONTROL_TOKEN_FILE")?,
            )
        };
        let way = Way::of(Path::new(control), authority.as_deref(), token.as_deref());
        attr.control = Some(way.map_err(|error| of_control(&error))?);
        Ok(())
    };
    status(set())
}
