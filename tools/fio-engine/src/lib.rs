//! What the fio engine (`c/engine.c`) needs of Ringway: open a volume, queue requests, wait for their ends.
//!
//! `abi` is the C interface, `memory` fio's buffers. `session` cuts fio's requests to
//! what the target takes and puts their ends together; a [`session::Carrier`] carries the pieces: `tcp` or `shm`.
//!
//! One session belongs to one job of fio and is used by the thread that opened it, the only one that submits to its ring.

pub mod abi;
mod memory;
mod options;
mod session;
mod shm;
mod tcp;
