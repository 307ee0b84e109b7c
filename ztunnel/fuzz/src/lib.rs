//! The code that the fuzz targets run: the parsers of `ztunnel/src/wire`, of manifests, of a control plane's resources and of what
//! nodes send to it, compiled again here with the modules that they need, so that fuzzing does not instrument a whole daemon
//! and its TLS. `cargo xtask fuzz` builds and runs the targets.

/// Without the watched folder.
#[path = "../../src/control"]
pub mod control {
    mod field;
    pub mod join;
    #[expect(dead_code, unused_imports, reason = "the watched folder, which is not compiled here, uses more of it")]
    pub mod manifests;
    pub mod objects;
    mod yaml;
}
/// The answers of an authority, and requests to it; without the sources of certificates.
#[path = "../../src/identity"]
pub mod identity {
    #[expect(dead_code, reason = "the sources of certificates, which are not compiled here, use more of it")]
    pub mod certificate;
    #[cfg(fuzzing)]
    pub mod check;
    mod credentials;
    #[expect(
        dead_code,
        unreachable_pub,
        reason = "the sources of certificates, which are not compiled here, use more of it"
    )]
    mod disk;
    /// Without the authority.
    pub mod local_ca {
        pub mod request;
    }
    pub mod request;
    #[expect(dead_code, reason = "the sources of certificates, which are not compiled here, use more of it")]
    pub mod x509;

    pub use self::credentials::Credentials;
}
/// Without the services.
#[path = "../../src/istio"]
pub mod istio {
    pub mod certificate;
    pub mod check;
    pub mod detail;
    pub mod discovery;
    pub mod object;
    pub mod read;
    pub mod report;
    pub mod security;
    pub mod settings;
    pub mod standard;
    pub mod workload;
}
#[path = "../../src/model/mod.rs"]
pub mod model;
#[path = "../../src/store/mod.rs"]
pub mod store;
#[path = "../../src/wire/mod.rs"]
pub mod wire;

/// Properties that hold for any bytes, by the name of the fuzz target.
#[cfg(fuzzing)]
pub mod check {
    pub use crate::control::manifests::check::manifests;
    pub use crate::identity::check::{certificate_answer, signing_request};
    pub use crate::istio::check::{pod_report, resources};
    pub use crate::wire::check::{authority, baggage, connect_request, forwarded, refusal, traceparent};
}

#[cfg(fuzzing)]
#[doc(hidden)]
pub use libfuzzer_sys;

/// The entry of a fuzz target: runs the [`check`] of that name on every input.
#[macro_export]
#[cfg(fuzzing)]
macro_rules! target {
    ($check:ident) => {
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
            let _accepted = $crate::check::$check(bytes);
        });
    };
}

/// Without instrumentation there is nothing to run: the target only has to compile, for editors and for clippy.
#[macro_export]
#[cfg(not(fuzzing))]
macro_rules! target {
    ($check:ident) => {
        fn main() {
            eprintln!("fuzz targets are built and run by `cargo xtask fuzz {}`", stringify!($check));
        }
    };
}
