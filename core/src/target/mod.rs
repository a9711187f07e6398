//! Starting and stopping a whole target: pool files, recovery, one thread a core.
//!
//! ```text
//! format(&PoolSpec, &FormatOptions, &mut dyn FnMut(&Progress)) -> Result<Formatted, StartError>
//! start(TargetConfig, &mut dyn FnMut(&Progress))               -> Result<RunningTarget, StartError>
//!
//! RunningTarget: Send + Sync
//!     .control()   -> Arc<dyn ControlPort>
//!     .metrics()   -> Arc<Metrics>
//!     .listeners() -> Vec<SocketAddr>      port 0 resolved
//!     .shutdown()                          begins to drain, from any thread; more than once does no harm
//!     .join(self)  -> Result<(), StopError>  waits until all threads have ended, after shutdown or on their own
//! ```

pub mod assembly;
mod config;
mod error;
pub mod log;

pub use config::{Allocation, FormatOptions, PoolSpec, TargetConfig};
pub use error::StartError;
pub use ringway_reactor::files::Progress;
