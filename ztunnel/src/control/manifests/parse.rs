//! One file to its objects.

use std::sync::Arc;

use super::document::{self, Document};
use super::error::FileError;
use crate::control::field::FieldPath;
use crate::control::objects::{self, Interner, Object, Remark, Said};
use crate::model::origin::Origin;
use crate::model::problem::Problem;

/// What one file says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FileContent {
    /// In the order of the file.
    pub(in crate::control) objects: Vec<Object>,
    /// What is wrong with them.
    pub(in crate::control) problems: Vec<Problem>,
}

/// Reads one file: YAML or JSON, any number of documents, `kind: List` included. `file` is only for messages.
///
/// # Errors
/// Something of it can't be read, or may not be as it is written.
pub fn parse(file: &Arc<str>, text: &str) -> Result<FileContent, FileError> {
    let mut content = FileContent::default();
    let mut texts = Interner::default();
    for document in document::split(text) {
        read(file, &document, &mut texts, &mut content)?;
    }
    content.objects.shrink_to_fit();
    Ok(content)
}

fn read(
    file: &Arc<str>,
    document: &Document<'_>,
    texts: &mut Interner,
    content: &mut FileContent,
) -> Result<(), FileError> {
    let mut noted = Vec::new();
    for item in document.read(file)? {
        let said = objects::read(item.resource, texts);
        let Said { name, title, body, remarks } =
            said.map_err(|error| document.wrong_field(file, item.line, error.below(&item.path)))?;
        noted.extend(remarks.into_iter().map(|remark| Noted {
            line: item.line,
            path: item.path.clone(),
            title: title.clone(),
            remark,
        }));
        let origin = Origin::line_of(Arc::clone(file), item.line);
        content.objects.extend(body.map(|body| Object { name, origin, body }));
    }
    content.problems.extend(problems(file, document, noted));
    Ok(())
}

/// A remark about an object of a document.
struct Noted {
    /// The object's line.
    line: u64,
    /// The object's path in the document.
    path: FieldPath,
    title: String,
    remark: Remark,
}

/// Remarks as problems, with the lines of the fields. Those are looked for all at once.
fn problems(file: &Arc<str>, document: &Document<'_>, noted: Vec<Noted>) -> Vec<Problem> {
    let fields: Vec<FieldPath> = noted.iter().map(|Noted { path, remark, .. }| path.join(&remark.field)).collect();
    let is_of_field = |noted: &Noted| !noted.remark.field.is_empty();
    let places = if noted.iter().any(is_of_field) { document.locate(&fields) } else { vec![None; fields.len()] };
    let problem = |(noted, place): (Noted, Option<(u64, u64)>)| {
        let place = place.filter(|_| is_of_field(&noted));
        let Noted { line, title, remark: Remark { message, severity, .. }, .. } = noted;
        let line = place.map_or(line, |(line, _)| line);
        Problem { origin: Origin::line_of(Arc::clone(file), line), object: Some(title), message, severity }
    };
    noted.into_iter().zip(places).map(problem).collect()
}
