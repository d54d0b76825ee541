//! Bodies of fuzz targets. They also run under `cargo test`.
