//! YAML and JSON texts to values, and fields of a text to lines and columns, both ways. The only user of `serde_saphyr`.

mod locate;
mod options;
mod path;
mod read;
mod shape;

pub(in crate::control) use self::locate::locate;
pub(in crate::control) use self::read::{Error, Marked, read, read_seed};
