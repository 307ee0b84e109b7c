//! Templates of Helm and others that have not been rendered.

use crate::control::yaml::{self, Base};

/// Whether a text that can't be read as a manifest is a template of a manifest: it has actions in double braces, and
/// can be read without them.
///
/// A broken manifest that has such braces in a comment or a text is not a template, since it remains broken without
/// them. A text that has only actions and comments is a template: its actions enclose other documents of the file.
pub(super) fn is_template(text: &str) -> bool {
    let is_read = |text: String| is_empty(&text) || yaml::lenient_tree(&text, Base::default()).is_some();
    without_actions(text).is_some_and(is_read)
}

/// Whether a text has braces of actions outside of comments. In a file that has a template, such a text is a part of
/// the template: an action may begin in one document and end in another.
pub(super) fn has_braces(text: &str) -> bool {
    let is_comment = |line: &&str| line.trim_start().starts_with('#');
    text.lines().filter(|line| !is_comment(line)).any(|line| line.contains("{{"))
}

fn is_empty(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---")
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
    use super::{has_braces, is_template};

    #[test]
    fn templates_are_told_from_broken_manifests() {
        for template in [
            "{{- if .Values.on }}\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {{ .Values.name }}\n  labels:\n    {{- include \"labels\" . | nindent 4 }}\n{{- end }}\n",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: \"{{ .Release.Name }}-x\"}\n",
            "{{- if .Values.on }}\n",
            "---\n# Source: x\n  {{ include \"x\" . }}  # comment\n\n",
            "{{/* a comment\nof two lines */}}\na: {{ .x }}-{{ .y }}\n{{ if .z }}\na: 1\n{{ else }}\na: 2\n{{ end }}\n",
        ] {
            assert!(is_template(template), "{template}");
        }
        for broken in
            ["kind: [", "# {{ x }}\nkind: [", "a: {{ x\n", "a: '{{ x }}'\nb: [", "a: 1\n", "{{ x }}\nkind: [\n"]
        {
            assert!(!is_template(broken), "{broken}");
        }
        assert!(has_braces("a: {{ x") && !has_braces("x }}\n") && !has_braces("# {{ x }}\nkind: [{a: {}}]"));
    }
}
