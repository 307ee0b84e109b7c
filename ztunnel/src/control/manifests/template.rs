//! Templates of Helm and others that have not been rendered.

use crate::control::yaml;

/// Whether a text that can't be read as a manifest is a template of a manifest: it has actions in double braces, and
/// can be read without them.
///
/// A broken manifest that has such braces in a comment or a text is not a template, since it remains broken without
/// them.
pub(super) fn is_template(text: &str) -> bool {
    without_actions(text).is_some_and(|text| yaml::lenient_tree(&text).is_some())
}

/// The text without its actions; `None` if there are none, or the braces don't match. A line with nothing but actions
/// is removed as a whole.
fn without_actions(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut found) = (text, false);
    while let Some((before, after)) = rest.split_once("{{") {
        let (_, behind) = after.split_once("}}")?;
        found = true;
        out.push_str(before);
        let line_before = out.rsplit('\n').next().unwrap_or_default();
        let line_after = behind.split('\n').next().unwrap_or_default();
        let is_alone =
            line_before.trim().is_empty() && (line_after.trim().is_empty() || line_after.trim().starts_with("{{"));
        if !is_alone {
            out.push('x');
        }
        rest = behind;
    }
    out.push_str(rest);
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::is_template;

    #[test]
    fn templates_are_told_from_broken_manifests() {
        for template in [
            "{{- if .Values.on }}\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {{ .Values.name }}\n  labels:\n    {{- include \"labels\" . | nindent 4 }}\n{{- end }}\n",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: \"{{ .Release.Name }}-x\"}\n",
            "{{/* a comment\nof two lines */}}\na: {{ .x }}-{{ .y }}\n{{ if .z }}\na: 1\n{{ else }}\na: 2\n{{ end }}\n",
        ] {
            assert!(is_template(template), "{template}");
        }
        for broken in ["kind: [", "# {{ x }}\nkind: [", "a: {{ x\n", "a: '{{ x }}'\nb: [", "a: 1\n"] {
            assert!(!is_template(broken), "{broken}");
        }
    }
}
