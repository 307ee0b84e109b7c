//! Takes secrets out of texts that leave the machine: private keys, tokens, and passwords.

/// What stands in the place of a secret.
const REMOVED: &str = "[removed]";
/// Names whose values are secrets, in lower case.
const NAMES: [&str; 9] = [
    "authorization",
    "client-key-data",
    "password",
    "passwd",
    "secret-key",
    "client_secret",
    "access_token",
    "refresh_token",
    "token",
];
/// The shortest part of a JSON web token.
const TOKEN_PART: usize = 8;

/// The text without secrets. Certificates stay: they are public.
pub(super) fn redacted(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut is_in_key = false;
    for line in text.split_inclusive('\n') {
        if is_in_key {
            is_in_key = !line.contains("-----END");
            if !is_in_key {
                kept.push_str(line.rsplit("-----").next().unwrap_or_default());
            }
            continue;
        }
        let (line, begins) = without_keys(line);
        is_in_key = begins;
        kept.push_str(&without_names(&without_encoded_keys(&without_tokens(&line))));
        if is_in_key {
            kept.push('\n');
        }
    }
    kept
}

/// Removes private keys in PEM. The flag: a key begins that does not end in this line.
fn without_keys(line: &str) -> (String, bool) {
    let mut kept = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("-----BEGIN ") {
        let (before, from) = rest.split_at(at);
        let label = from.strip_prefix("-----BEGIN ").and_then(|label| label.split("-----").next()).unwrap_or_default();
        if !label.contains("PRIVATE KEY") {
            let (begin, after) = from.split_at("-----BEGIN ".len());
            kept.push_str(before);
            kept.push_str(begin);
            rest = after;
            continue;
        }
        kept.push_str(before);
        kept.push_str(REMOVED);
        let end = format!("-----END {label}-----");
        match from.find(&end) {
            Some(at) => rest = from.get(at + end.len()..).unwrap_or_default(),
            None => return (kept, true),
        }
    }
    kept.push_str(rest);
    (kept, false)
}

/// Removes private keys in PEM that are encoded in base64 once more, as in a Secret or a kubeconfig.
fn without_encoded_keys(line: &str) -> String {
    // Base64 of `-----BEGIN P`, `-----BEGIN R`, `-----BEGIN E`: private keys, RSA and EC keys; not of `-----BEGIN C`.
    const BEGINS: [&str; 3] = ["LS0tLS1CRUdJTiBQ", "LS0tLS1CRUdJTiBS", "LS0tLS1CRUdJTiBF"];
    replaced(line, |word| BEGINS.iter().any(|begin| word.starts_with(begin)))
}

/// Removes JSON web tokens.
fn without_tokens(line: &str) -> String {
    let is_part = |part: &str| part.len() >= TOKEN_PART;
    replaced(line, |word| {
        let parts: Vec<&str> = word.split('.').collect();
        word.starts_with("eyJ") && parts.len() >= 3 && parts.iter().take(3).all(|part| is_part(part))
    })
}

/// Replaces each word of base64 characters, dots and dashes that is a secret.
fn replaced(line: &str, is_secret: impl Fn(&str) -> bool) -> String {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_' | '.' | '=');
    let mut kept = String::with_capacity(line.len());
    let mut rest = line;
    while !rest.is_empty() {
        let end = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        // A word such as `key=VALUE` has its secret after the sign.
        let start = word.find("=").map_or(0, |at| at + 1);
        let (name, value) = word.split_at(start);
        if is_secret(word) {
            kept.push_str(REMOVED);
        } else if !value.is_empty() && is_secret(value) {
            kept.push_str(name);
            kept.push_str(REMOVED);
        } else {
            kept.push_str(word);
        }
        let other = after.find(is_of_word).unwrap_or(after.len());
        let (between, following) = after.split_at(other);
        kept.push_str(between);
        rest = following;
    }
    kept
}

/// Removes the values of names that are secrets: `password: x`, `"token": "x"`, `Authorization: Bearer x`.
fn without_names(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let mut kept = String::new();
    let mut at = 0;
    while let Some((start, name)) = next_name(&lower, at) {
        let after = start + name.len();
        let rest = line.get(after..).unwrap_or_default();
        let separated = rest.trim_start_matches(['"', '\'']).trim_start();
        let Some(value) = separated.strip_prefix([':', '=']) else {
            kept.push_str(line.get(at..after).unwrap_or_default());
            at = after;
            continue;
        };
        let value = value.trim_start().trim_start_matches(['"', '\'']);
        let scheme = ["bearer ", "basic "]
            .into_iter()
            .find(|scheme| value.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
        let value = value.get(scheme.map_or(0, str::len)..).unwrap_or_default();
        let end = value.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | '}' | ']' | '&' | ';'));
        let end = end.unwrap_or(value.len());
        let value_at = line.len() - value.len();
        kept.push_str(line.get(at..value_at).unwrap_or_default());
        // Nothing, or a value that is shown on purpose.
        let secret = value.get(..end).unwrap_or_default();
        let is_shown = matches!(secret, "" | "null" | "true" | "false") || secret == REMOVED;
        kept.push_str(if is_shown { secret } else { REMOVED });
        at = value_at + end;
    }
    kept.push_str(line.get(at..).unwrap_or_default());
    kept
}

/// The next name that stands for itself, from a position on.
fn next_name(lower: &str, at: usize) -> Option<(usize, &'static str)> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric();
    let found = |name: &'static str| {
        let mut from = at;
        loop {
            let start = from + lower.get(from..)?.find(name)?;
            let before = lower.get(..start).and_then(|text| text.chars().next_back());
            let after = lower.get(start + name.len()..).and_then(|text| text.chars().next());
            if !before.is_some_and(is_of_name) && !after.is_some_and(is_of_name) {
                return Some((start, name));
            }
            from = start + name.len();
        }
    };
    NAMES.into_iter().filter_map(found).min_by_key(|(start, _)| *start)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::redacted;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMIIBIjAN\n-----END CERTIFICATE-----\n";
    const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ6dHVubmVsIn0.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg";

    #[test]
    fn keys_go_and_certificates_stay() {
        let text =
            redacted(&format!("before\n{KEY}between\n{CERTIFICATE}{}after\n", KEY.replace("PRIVATE", "EC PRIVATE")));
        assert!(!text.contains("MIGH") && !text.contains("c2VjcmV0") && !text.contains("PRIVATE"), "{text}");
        assert!(text.contains("before\n") && text.contains("between\n") && text.ends_with("after\n"), "{text}");
        assert!(text.contains(CERTIFICATE), "{text}");
        let cut = redacted("-----BEGIN PRIVATE KEY-----\nMIGHAgEA");
        assert!(!cut.contains("MIGH"), "a key without an end: {cut}");
        let json = redacted(&format!("{{\"key\": {KEY:?}, \"a\": 1}}"));
        assert_eq!(json, "{\"key\": \"[removed]\\n\", \"a\": 1}");
    }

    #[test]
    fn keys_within_base64_go_and_certificates_stay() {
        for key in [KEY.to_owned(), KEY.replace("PRIVATE", "RSA PRIVATE"), KEY.replace("PRIVATE", "EC PRIVATE")] {
            let text = redacted(&format!("client-key: {}\nnext", STANDARD.encode(&key)));
            assert_eq!(text, "client-key: [removed]\nnext");
            assert_eq!(redacted(&format!("tls.key={}", STANDARD.encode(&key))), "tls.key=[removed]");
        }
        let certificate = format!("\"pem\": \"{}\"", STANDARD.encode(CERTIFICATE));
        assert_eq!(redacted(&certificate), certificate);
    }

    #[test]
    fn tokens_go_wherever_they_stand() {
        for text in [
            format!("token read: {TOKEN}"),
            format!("a={TOKEN}, b"),
            format!("\"{TOKEN}\""),
            format!("Authorization: Bearer {TOKEN}"),
            "authorization=Basic dXNlcjpwYXNz more".to_owned(),
            "{\"access_token\":\"abc123\",\"b\":1}".to_owned(),
            "password: hunter2".to_owned(),
            "https://x/?token=abc123&b=1".to_owned(),
        ] {
            let clean = redacted(&text);
            assert!(clean.contains("[removed]"), "{text}: {clean}");
            for secret in ["eyJ", "c2lnbmF0", "dXNlcjpwYXNz", "abc123", "hunter2"] {
                assert!(!clean.contains(secret), "{text}: {clean}");
            }
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "2026-11-20T07:26:31.281417Z\tinfo\taccess\tconnection complete\tsrc.addr=127.0.0.2:60533 reason=\"complete\"\n",
            "spiffe://cluster.local/ns/demo/sa/web serial 123456789012345678901234567890",
            "{\"tokens\": 3, \"token\": null, \"namespace\": \"demo\"}",
            "the token of the control plane cannot be read\n",
            "eyJ is the beginning of a token",
            "\u{e9}t\u{e9} token\u{e9}: x",
        ] {
            assert_eq!(redacted(text), text);
        }
    }
}
