//! NVMe as it is on the wire, whatever carries it: commands, completions and the data structures that they move.
//!
//! Each structure is a little-endian `repr(C)` layout whose size is asserted; figures such as `24-39` are byte offsets of the
//! NVM Express base specification 2.0 ("base"), the NVM command set specification 1.0 ("nvm"), the NVMe/TCP transport
//! specification 1.0 ("tcp") and the NVMe/RDMA transport specification 1.0 ("rdma"). Nothing here panics on any bytes: what a
//! peer sent is either read as a layout that every bit pattern fits, or refused with the status that the specification names.

pub mod command;
pub mod completion;
pub mod dsm;
pub mod fabrics;
pub mod features;
pub mod identify;
pub mod log_page;
pub mod pdu;
pub mod rdma;
pub mod sgl;
pub mod text;

#[cfg(test)]
mod tests;

/// The subsystem that every host may ask for the others (base 3.1.3.3).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Bytes of the longest NQN (base 4.5).
pub const NQN_MAX: usize = 223;
/// The port of NVMe over TCP, IANA.
pub const PORT_NVME: u16 = 4420;
/// The port of NVMe discovery over TCP, IANA.
pub const PORT_DISCOVERY: u16 = 8009;
/// "All namespaces", or "none in particular" (base 3.2.1.1).
pub const NSID_ALL: u32 = 0xFFFF_FFFF;
