//! `libovsvolumedriver.so.1`: the C interface of Open vStorage's volume driver library, over Ringway. Names, signatures and the meaning of
//! errno are those that its callers were written against; `include/openvstorage/volumedriver.h` has them, docs/edges has the manual.
//!
//! Every call may be made from any thread. Requests are handed to the context's own thread, a [`ringway_client::Engine`], which also runs
//! the callbacks. The library installs no signal handler but the one for SIGBUS that memory shared with another process needs, and only
//! with transport shm; it blocks all signals on its threads.
//!
//! `attr` contexts to be · `ctx` contexts · `buffer` memory · `data` calls that wait · `aio` calls that do not · `operation` what both
//! wait for · `volumes`, `snapshots`, `allocation`, `streams` the control interface · `live` what the program has · `errors` errno.

mod aio;
mod allocation;
mod attr;
mod buffer;
mod ctx;
mod data;
mod errors;
mod live;
mod operation;
mod snapshots;
mod streams;
mod volumes;

pub use aio::*;
pub use allocation::*;
pub use attr::*;
pub use buffer::*;
pub use ctx::*;
pub use data::*;
pub use errors::ovs_last_error;
pub use operation::{Operation, OvsCallback, OvsCompletion};
pub use snapshots::*;
pub use streams::*;
pub use volumes::*;
