//! `ztunnel certs`: the certificates of the pods of this node.

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    ask,
    output::json,
    table::{Table, duration},
};
use crate::{
    app::admin::CONFIG_DUMP,
    config::live::{CertsArgs, View},
    identity::cache::CertInfo,
};

#[derive(Debug, Deserialize, Serialize)]
struct Certificates {
    node: String,
    certificates: Vec<CertInfo>,
}

/// The text of the command.
///
/// # Errors
/// If no daemon answers.
pub(super) fn certs(args: &CertsArgs) -> anyhow::Result<String> {
    let answer: Certificates = ask::json(args.daemon.admin, &format!("{CONFIG_DUMP}?only=certificates"))?;
    Ok(match args.daemon.output {
        View::Json => json(&answer),
        View::Table | View::Wide => {
            table(&answer.certificates, args.daemon.output == View::Wide, OffsetDateTime::now_utc())
        }
    })
}

fn table(certificates: &[CertInfo], is_wide: bool, now: OffsetDateTime) -> String {
    let columns = ["IDENTITY", "STATE", "NOT AFTER", "REMAINING", "RENEWAL"];
    let mut table = Table::new(&columns, &["NOT BEFORE", "SERIAL", "ROOTS"], is_wide);
    for one in certificates {
        let leaf = one.cert_chain.first();
        let until = leaf.map(|leaf| leaf.expiration_time.clone()).unwrap_or_default();
        let roots: Vec<&str> = one.root_certs.iter().map(|root| root.serial_number.as_str()).collect();
        table.row([
            one.identity.clone(),
            one.state.clone(),
            until.clone(),
            remaining(&until, now),
            one.renewal_failure.as_ref().map(|why| format!("FAILED: {why}")).unwrap_or_default(),
            leaf.map(|leaf| leaf.valid_from.clone()).unwrap_or_default(),
            leaf.map(|leaf| leaf.serial_number.clone()).unwrap_or_default(),
            roots.join(","),
        ]);
    }
    table.text("no certificates: no pod of this node is enrolled")
}

/// The time until the expiry, by the clock of this machine.
fn remaining(until: &str, now: OffsetDateTime) -> String {
    let Some(until) = parsed(until) else { return String::new() };
    match u64::try_from((until - now).whole_seconds()) {
        Ok(seconds) if seconds > 0 => duration(seconds),
        _ => "EXPIRED".to_owned(),
    }
}

/// A time in RFC 3339.
fn parsed(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{certs, parsed, table};
    use crate::{
        app::cli::ask::tests::{answering, http},
        config::live::{CertsArgs, DaemonArgs, View},
        identity::cache::CertInfo,
    };

    fn certificates() -> Value {
        let link = |serial: &str, until: &str| json!({"pem": "", "serialNumber": serial, "validFrom": "2026-11-30T00:00:00Z", "expirationTime": until});
        json!([
            {"identity": "spiffe://cluster.local/ns/demo/sa/web", "state": "Available", "rootCerts": [link("7", "2036-01-01T00:00:00Z")],
             "certChain": [link("12", "2026-12-01T01:00:00Z")], "renewalFailure": "no answer"},
            {"identity": "spiffe://cluster.local/ns/demo/sa/old", "state": "Unavailable: no answer", "rootCerts": [],
             "certChain": [link("13", "2026-11-30T12:00:00Z")]},
            {"identity": "spiffe://cluster.local/ns/demo/sa/new", "state": "Initializing", "rootCerts": [], "certChain": []},
        ])
    }

    #[test]
    fn certificates_have_their_expiry_and_what_is_wrong() {
        let all: Vec<CertInfo> = serde_json::from_value(certificates()).unwrap();
        let text = table(&all, false, parsed("2026-12-01T00:00:00Z").unwrap());
        let words: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            words,
            [
                "IDENTITY STATE NOT AFTER REMAINING RENEWAL",
                "spiffe://cluster.local/ns/demo/sa/web Available 2026-12-01T01:00:00Z 1h0m FAILED: no answer",
                "spiffe://cluster.local/ns/demo/sa/old Unavailable: no answer 2026-11-30T12:00:00Z EXPIRED -",
                "spiffe://cluster.local/ns/demo/sa/new Initializing - - -",
            ]
        );
        let wide = table(&all, true, parsed("2026-12-01T00:00:00Z").unwrap());
        assert!(
            wide.contains("SERIAL") && wide.lines().nth(1).unwrap().ends_with("2026-11-30T00:00:00Z  12      7"),
            "{wide}"
        );
    }

    #[test]
    fn programs_get_the_certificates_as_they_are() {
        let body = json!({"node": "node-a", "certificates": certificates()}).to_string();
        let admin = answering(move |_| http("200 OK", &body));
        let text = certs(&CertsArgs { daemon: DaemonArgs { admin, output: View::Json } }).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["schemaVersion"], 1);
        assert_eq!(json["certificates"][1]["state"], "Unavailable: no answer");
    }
}
