//! Controllers as a host meets them.
