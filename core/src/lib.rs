//! The Ringway target. `docs/ARCHITECTURE.md` follows one request through it.
#![forbid(unsafe_code)]
