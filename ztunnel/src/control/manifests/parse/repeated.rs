//! Objects in which keys are there twice. The syntax of such a text is valid, and `kubectl` takes the last of equal
//! keys. So does this program, unless it uses the field: then the author has to choose one.

use std::sync::Arc;

use super::{Context, Reader, Repeated, by_words, repeated};
use crate::control::field::FieldPath;
use crate::control::manifests::document::{Content, Header};
use crate::control::manifests::error::{Fault, FileError, Hides, Subject};
use crate::control::manifests::used::is_used;
use crate::control::objects::Kind;
use crate::control::yaml::{self, LeftOut, Node};
use crate::model::origin::Origin;
use crate::model::problem::{Problem, Severity};

/// The most keys of one object that are reported one by one.
const MOST_TOLD: usize = 8;

impl Reader<'_> {
    /// Reads a text that has keys twice, or maps that cannot be merged.
    pub(super) fn lenient(&mut self, error: yaml::Error, base: yaml::Base, context: &Context<'_>) {
        let lenient = if error.is_syntax { None } else { yaml::lenient_tree(context.text, base) };
        let Some((node, mut left_out)) = lenient else { return self.unreadable(error, context) };
        for one in &mut left_out {
            one.error.field = one.error.field.as_ref().map(|field| context.path.join(field));
        }
        self.node(node, &Context { path: context.path.clone(), left_out: &left_out, ..*context });
    }

    /// Reports an object whose head has keys twice, so that it is not sure which object it is. Returns whether the
    /// head has such keys.
    pub(super) fn unclear_head(
        &mut self,
        (node, header): (&Node<'_>, &Header<'_>),
        context: &Context<'_>,
        is_item: bool,
    ) -> bool {
        let all = repeated(context);
        let of_head: Vec<&Repeated<'_>> = all.iter().filter(|(path, _)| Header::includes(path.steps())).collect();
        let Some((_, first)) = of_head.first() else { return false };
        let fields = of_head.iter().map(|(path, one)| (path.steps(), &one.value));
        let meanings = header.possible(fields).and_then(|heads| {
            heads.iter().map(|head| self.meaning(head, is_item, context)).collect::<Option<Vec<_>>>()
        });
        let (subject, hides) = match meanings {
            None => (Subject::Unknown, by_words(context.text)),
            Some(meanings) => match meanings.into_iter().flatten().reduce(either) {
                Some(meaning) => meaning,
                None if matches!(header.content(is_item), Ok(Content::Stranger)) => {
                    self.stranger(node);
                    return true;
                }
                None => {
                    self.repeated_unused(header.title().as_deref(), &all);
                    return true;
                }
            },
        };
        let error = FileError::at(self.file, &FieldPath::default(), first.error.clone());
        self.fault(Fault { error, subject, hides, is_syntax: false, is_template: false }, context.text);
        true
    }

    /// The object that a head names, and what it may hide. The inner `None`: nothing of interest here; the outer:
    /// anything.
    fn meaning(&self, head: &Header<'_>, is_item: bool, context: &Context<'_>) -> Option<Option<(Subject, Hides)>> {
        Some(match head.content(is_item) {
            Ok(Content::Stranger | Content::Other | Content::Object(Kind::Unenforced(_))) => None,
            Ok(Content::Object(kind)) => Some(self.subject(kind, head, context.text)),
            Ok(Content::List(_)) => return None,
            Err(unclear) => Some(self.unclear_subject(&unclear, head, context.text)),
        })
    }

    /// Reports keys that are there twice in a list itself, so that its items are not known. Returns whether there are
    /// such keys.
    pub(super) fn unclear_list(&mut self, context: &Context<'_>) -> bool {
        let all = repeated(context);
        let items = FieldPath::of("items");
        let Some((_, one)) = all.iter().find(|(path, _)| *path == items || path.begins_with("<<")) else {
            return false;
        };
        let error = FileError::at(self.file, &FieldPath::default(), one.error.clone());
        let (subject, hides) = (Subject::Unknown, by_words(context.text));
        self.fault(Fault { error, subject, hides, is_syntax: false, is_template: false }, context.text);
        true
    }

    /// The first key of an object that is there twice although this program uses the field.
    pub(super) fn repeated_used(&self, kind: Kind, context: &Context<'_>) -> Option<FileError> {
        let all = repeated(context);
        let (_, one) = all.iter().find(|(path, _)| is_used(kind, path))?;
        Some(FileError::at(self.file, &FieldPath::default(), one.error.clone()))
    }

    /// Reports keys that are there twice and that this program does not use.
    pub(super) fn repeated_unused(&mut self, title: Option<&str>, repeated: &[Repeated<'_>]) {
        for (number, (path, LeftOut { error, .. })) in repeated.iter().enumerate().take(MOST_TOLD) {
            let more = match repeated.len().saturating_sub(MOST_TOLD) {
                more @ 1.. if number + 1 == MOST_TOLD => format!(" (and {more} more keys of this object)"),
                _ => String::new(),
            };
            let line = error.place.map_or(1, |(line, _)| line);
            self.content.problems.push(Problem {
                origin: Origin::line_of(Arc::clone(self.file), line),
                object: title.map(str::to_owned),
                message: format!("{path}: {}{more}; the last one counts", error.message),
                severity: Severity::Warning,
            });
        }
    }
}

/// The meaning of a text that has one of two meanings.
fn either((one, hidden): (Subject, Hides), (other, also_hidden): (Subject, Hides)) -> (Subject, Hides) {
    let subject = match (one, other) {
        (one, other) if one == other => one,
        (Subject::Object(one, _) | Subject::Kind(one), Subject::Object(other, _) | Subject::Kind(other))
            if one == other =>
        {
            Subject::Kind(one)
        }
        _ => Subject::Unknown,
    };
    (subject, hidden.or(also_hidden))
}
