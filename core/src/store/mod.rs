pub(crate) mod chunk;
pub mod record;
