//! See `DESIGN` in docs/ARCHITECTURE.md.
