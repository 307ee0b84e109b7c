//! The demo on a cluster shows the expected results.

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn the_demo_runs_on_a_cluster() -> anyhow::Result<()> {
    ztunnel_tests::cluster::demo::run(&ztunnel_tests::settings::daemon_image()?)
}
