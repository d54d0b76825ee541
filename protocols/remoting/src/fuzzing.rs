//! Bodies of fuzz targets; they also run under `cargo test`.
