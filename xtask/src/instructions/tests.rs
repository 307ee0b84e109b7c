use super::*;

const DUMP: &str = "# callgrind format\nversion: 1\nevents: Ir\n\nfl=(1) a.rs\nfn=(1) counted\n5 20\n\ntotals: 1249\n";

#[test]
fn each_scenario_is_divided_by_its_operations() -> Result<()> {
    let dumps = |number: usize, _: &str| Ok(DUMP.replace("1249", &(number * 1_000 + 249).to_string()));
    let counts = counts("100\tone\n10\ttwo, of 5\n", dumps)?;
    assert_eq!(counts, Counts::from([("one".to_owned(), 12), ("two, of 5".to_owned(), 225)]));
    Ok(())
}

#[test]
fn a_scenario_has_a_file_of_its_name() {
    assert_eq!(file_name("route to a pod, 10 services, 50 pods"), "route-to-a-pod-10-services-50-pods.callgrind");
}

#[test]
fn what_was_not_counted_is_an_error() {
    let said = |said: &str, dump: &str| counts(said, |_, _| Ok(dump.to_owned())).map_err(|error| format!("{error:#}"));
    assert!(said("100\tone\n", DUMP).is_ok());
    for (text, dump, why) in [
        ("", DUMP, "no scenario"),
        ("one\n", DUMP, "not a scenario"),
        ("many\tone\n", DUMP, "not a scenario"),
        ("0\tone\n", DUMP, "did nothing"),
        ("5\tone\n", "totals: 0\n", "did nothing"),
        ("5\tone\n", "events: Ir\n", "no totals"),
        ("5\tone\n", "totals: lots\n", "lots"),
        ("5\tone\n5\tone\n", DUMP, "twice"),
    ] {
        let error = said(text, dump).unwrap_err();
        assert!(error.contains(why), "{text:?}: {error}");
    }
    assert!(counts("5\tone\n", |_, _| bail!("no file")).is_err());
}

fn figures(counts: &[(&str, u64)]) -> Figures {
    let instructions = counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    Figures { machine: "x86_64".into(), compiler: "rustc 1.95.0".into(), instructions }
}

#[test]
fn more_than_the_tolerance_is_told_in_both_directions() -> Result<()> {
    let before = figures(&[("judge", 1_000), ("route", 1_000), ("wire", 1_000)]);
    let verdict =
        |judge, route, wire| compare(&figures(&[("judge", judge), ("route", route), ("wire", wire)]), &before);
    assert_eq!(verdict(1_000, 1_150, 850)?, Verdict::default());
    let Verdict { grown, shrunk } = verdict(1_151, 1_000, 849)?;
    assert_eq!(grown, ["judge: 1151 instructions, was 1000 (+15.1 %)"]);
    assert_eq!(shrunk, ["wire: 849 instructions, was 1000 (-15.1 %)"]);
    Ok(())
}

#[test]
fn what_has_no_counterpart_is_no_comparison() {
    let (one, two) = (figures(&[("judge", 1)]), figures(&[("judge", 1), ("route", 1)]));
    let error = |now, before| compare(now, before).unwrap_err().to_string();
    assert!(error(&two, &one).starts_with("not in the file: route; `cargo xtask"), "{}", error(&two, &one));
    assert!(error(&one, &two).starts_with("only in the file: route; `cargo xtask"), "{}", error(&one, &two));
    let other = Figures { machine: "aarch64".into(), ..figures(&[("judge", 1)]) };
    assert!(error(&other, &one).contains("has figures of x86_64, and this machine is aarch64"));
}

#[test]
fn another_compiler_is_told() {
    let (now, before) = (figures(&[]), Figures { compiler: "rustc 1.94.0".into(), ..figures(&[]) });
    let told = |before: &Figures| advice(&["judge: …".to_owned()], &now, before, Path::new("target"));
    assert!(told(&before).contains("The file was made with rustc 1.94.0, this is rustc 1.95.0"), "{}", told(&before));
    assert!(!told(&now).contains("rustc"), "{}", told(&now));
    assert!(told(&now).contains("judge: …") && told(&now).contains("--update"), "{}", told(&now));
}

#[test]
fn the_committed_figures_are_read() -> Result<()> {
    let figures = read(&crate::workspace::manifest_folder().join("..").join(FILE))?;
    assert!(figures.instructions.values().all(|count| *count > 0), "{figures:?}");
    assert_eq!(compare(&figures, &figures)?, Verdict::default());
    Ok(())
}
