//! Names of objects.

/// Checks Kubernetes' rule for names (RFC 1123 subdomain). Names get into logs, metrics and identities, so no other text is
/// accepted.
///
/// # Errors
/// The fault, as a sentence for people.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.len() <= 253 && name.starts_with(edge) && name.ends_with(edge) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(format!("{name:?} is not a Kubernetes name: lower-case letters, digits, '-' and '.', at most 253"))
}
