//! The meaning of plain scalars where a number, a boolean or null is expected: YAML 1.1 as `kubectl` reads it.

/// Whether a plain scalar is null.
pub(super) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => Some(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => Some(false),
        _ => None,
    }
}

/// Parses a whole number: decimal, `0x`, `0b`, `0o`, and octal with a leading zero. A number with a leading zero and a
/// digit that is not octal is decimal. `80.0` is a whole number too.
pub(super) fn integer(text: &str) -> Option<i128> {
    let plain: String = text.chars().filter(|c| *c != '_').collect();
    let (is_negative, digits) = match plain.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let radix = [("0x", 16), ("0X", 16), ("0b", 2), ("0B", 2), ("0o", 8), ("0O", 8)];
    let prefixed = radix.iter().find_map(|(prefix, radix)| Some((digits.strip_prefix(prefix)?, *radix)));
    let in_radix = |digits: &str, radix| {
        let is_digits = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
        is_digits.then(|| i128::from_str_radix(digits, radix).ok()).flatten()
    };
    let value = match prefixed {
        Some((digits, radix)) => in_radix(digits, radix)?,
        None if digits.starts_with('0') && digits.len() > 1 => {
            in_radix(digits, 8).or_else(|| in_radix(digits, 10)).or_else(|| whole(digits))?
        }
        None => in_radix(digits, 10).or_else(|| whole(digits))?,
    };
    Some(if is_negative { -value } else { value })
}

/// A number with a point or an exponent, if it is a whole number.
fn whole(digits: &str) -> Option<i128> {
    let value = float(digits)?;
    // Beyond this limit not every whole number has a representation of its own.
    let is_whole = value.fract() == 0.0 && value.abs() < 9e15;
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and small")]
    is_whole.then_some(value as i128)
}

pub(super) fn float(text: &str) -> Option<f64> {
    let is_number = text.chars().all(|c| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E'));
    let has_digit = text.contains(|c: char| c.is_ascii_digit());
    (is_number && has_digit).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::{boolean, float, integer, is_null};

    #[test]
    fn numbers_are_those_of_yaml_1_1() {
        let table = [
            ("0", Some(0)),
            ("80", Some(80)),
            ("-80", Some(-80)),
            ("+80", Some(80)),
            ("0400", Some(256)),
            ("0o400", Some(256)),
            ("0644", Some(420)),
            ("0x10", Some(16)),
            ("0b101", Some(5)),
            ("1_000", Some(1000)),
            ("080", Some(80)),
            ("80.0", Some(80)),
            ("1e3", Some(1000)),
            ("80.5", None),
            ("", None),
            ("-", None),
            ("0x", None),
            ("_80", Some(80)),
            ("80 ", None),
            ("eighty", None),
            ("1.2.3", None),
            (".inf", None),
            ("1e300", None),
            ("99999999999999999999999999999999999999999999", None),
        ];
        for (text, expected) in table {
            assert_eq!(integer(text), expected, "{text}");
        }
        assert_eq!((float("1.5"), float("e"), float("nan")), (Some(1.5), None, None));
    }

    #[test]
    fn words_are_booleans_and_nothing() {
        assert_eq!(
            [boolean("yes"), boolean("Off"), boolean("y"), boolean("yEs")],
            [Some(true), Some(false), Some(true), None]
        );
        assert_eq!(["", "~", "null", "nil"].map(is_null), [true, true, true, false]);
    }
}
