use super::*;

#[test]
fn the_loaded_library_tells_the_llvm() {
    assert_eq!(loaded_llvm_major(b"\x7fELF..\0libLLVM.so.22.1\0libc.so.6"), Some(22));
    assert_eq!(loaded_llvm_major(b"\x7fELF..\0libLLVM-19.so\0"), Some(19));
    assert_eq!(loaded_llvm_major(b"see libLLVM-C; libLLVM.so.x\0libLLVM.so.21\0"), Some(21));
    assert_eq!(loaded_llvm_major(b"\x7fELF static"), None);
    assert_eq!(loaded_llvm_major(b"libLLVM.so."), None);
}

#[test]
fn cargos_record_tells_the_llvm() {
    let record = |features: &str| {
        format!(
            r#"{{"installs":{{"cargo-deny 0.20.2 (r)":{{"features":["llvm-9"]}},"bpf-linker 0.13.0 (r)":{{"features":{features}}}}}}}"#
        )
    };
    assert_eq!(recorded_llvm_major(&record(r#"["llvm-link-static","llvm-22"]"#)), Some(22));
    assert_eq!(recorded_llvm_major(&record("[]")), None);
    assert_eq!(recorded_llvm_major(r#"{"installs":{}}"#), None);
    assert_eq!(recorded_llvm_major("not JSON"), None);
}

#[test]
fn a_linker_that_lags_behind_is_recognised() {
    let cargo = "error: package `bpf-linker v0.13.0` does not have feature `llvm-24`";
    assert!(lacks_feature(cargo, "llvm-24"));
    let older = "the package 'bpf-linker' does not contain this feature: llvm-24";
    assert!(lacks_feature(older, "llvm-24"));
    assert!(!lacks_feature("error: failed to run custom build command for `llvm-sys`", "llvm-24"));
}
