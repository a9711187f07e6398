//! What the fio engine (`c/engine.c`) needs of Ringway, behind a C interface: open a volume, queue requests, wait for their ends.
//!
//! `abi` is that interface, `options` what a job says. All else is `ringway-client`'s. One session belongs to one job of fio and is
//! used by the thread that opened it.

pub mod abi;
mod options;
