//! What the fuzz targets run: the parsers of `ztunnel/src/wire`, compiled again here with what they need, so that fuzzing
//! does not instrument a whole daemon and its TLS. `cargo xtask fuzz` builds and runs the targets.

#[path = "../../src/model/mod.rs"]
pub mod model;
#[path = "../../src/wire/mod.rs"]
pub mod wire;

#[cfg(fuzzing)]
#[doc(hidden)]
pub use libfuzzer_sys;

/// The entry of a fuzz target: runs the check of that name in [`wire`] on every input.
#[macro_export]
#[cfg(fuzzing)]
macro_rules! target {
    ($check:ident) => {
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::wire::check::$check(bytes));
    };
}

/// Without instrumentation there is nothing to run: it only has to compile, for editors and for clippy.
#[macro_export]
#[cfg(not(fuzzing))]
macro_rules! target {
    ($check:ident) => {
        fn main() {
            eprintln!("fuzz targets are built and run by `cargo xtask fuzz {}`", stringify!($check));
        }
    };
}
