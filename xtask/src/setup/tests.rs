use super::*;

#[test]
fn the_table_says_what_is_missing_and_the_verdict_names_it() {
    let rows = [
        Row::met("cc", "/usr/bin/cc"),
        Row::missing("nginx", "-", "apt-get install nginx-light"),
        Row::missing("curl", "-", "apt-get install curl").attempted(Ok("/usr/bin/curl".to_owned())),
        Row::missing("nft", "-", "apt-get install nftables").attempted(Err(anyhow::anyhow!("no network"))),
    ];
    let text = table(&rows).to_string();
    let result =
        |name: &str| text.lines().find(|line| line.trim().starts_with(name)).unwrap().trim().rsplit(' ').next();
    assert_eq!(result("cc"), Some("ok"));
    assert_eq!(result("nginx"), Some("MISSING"));
    assert_eq!(result("curl"), Some("installed"));
    assert_eq!(result("nft"), Some("FAILED"));
    assert!(verdict(&rows, Mode::Check).unwrap_err().to_string().contains("nginx, nft"));
    assert!(verdict(&rows[..1], Mode::Check).is_ok());
}

#[test]
fn a_check_of_the_c_tool_chain_needs_no_apt() {
    assert!(rows(Needs::default(), Mode::Check).iter().all(Row::is_met), "these tests were linked with something");
}
