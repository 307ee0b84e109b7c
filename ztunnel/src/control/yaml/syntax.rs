//! Messages about syntax errors in a YAML text.

use std::borrow::Cow;

use granit_parser::ErrorKind;

/// What is wrong, and what to do.
pub(super) fn sentence(kind: &ErrorKind) -> Cow<'static, str> {
    Cow::Borrowed(match kind {
        ErrorKind::UnclosedFlowCollection { open } => {
            return Cow::Owned(format!("the bracket {open} is never closed: close it"));
        }
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => {
            return Cow::Owned(format!("the bracket {open} is closed by {close}: close it by its own"));
        }
        ErrorKind::UnexpectedCharacter { character } => {
            return Cow::Owned(format!("a value cannot begin with {character:?}: put it in quotation marks"));
        }
        ErrorKind::UnexpectedEofFlowSequence
        | ErrorKind::UnexpectedEofFlowMapping
        | ErrorKind::UnexpectedEofImplicitFlowMapping => "the text ends inside of brackets: close them",
        ErrorKind::ExpectedFlowMappingSeparator | ErrorKind::ExpectedFlowSequenceSeparator => {
            "a comma or a closing bracket is missing here"
        }
        ErrorKind::MisplacedFlowCollectionEnd => "a bracket is closed that was never opened: remove it",
        ErrorKind::UnclosedQuotedScalar | ErrorKind::DocumentIndicatorInQuotedScalar => {
            "a quotation mark is never closed: close it"
        }
        ErrorKind::InvalidTrailingSingleQuotedScalar | ErrorKind::InvalidTrailingDoubleQuotedScalar => {
            "something follows a closing quotation mark: put the whole value in quotation marks"
        }
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabAtBlockScalarStart
        | ErrorKind::TabInPlainScalar
        | ErrorKind::InvalidBlockEntryWhitespace
        | ErrorKind::InvalidMappingValueWhitespace => "a tab is not allowed here: indent with spaces",
        ErrorKind::InvalidIndentation
        | ErrorKind::InvalidBlockScalarIndent
        | ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::ExpectedBlockSequenceEntry
        | ErrorKind::UnexpectedEofBlockMapping
        | ErrorKind::UnexpectedEofBlockSequence
        | ErrorKind::BlockSequenceEntryNotAllowed
        | ErrorKind::BlockEntryInFlowCollection => "the indentation does not fit the lines before: correct it",
        ErrorKind::InvalidQuotedScalarIndent | ErrorKind::InvalidFlowScalarIndent => {
            "the lines of a text in quotation marks are not indented: indent them, or close the quotation mark"
        }
        ErrorKind::MappingValueNotAllowed
        | ErrorKind::MappingKeyNotAllowed
        | ErrorKind::InvalidColonPlacement
        | ErrorKind::FlowMappingValueAdjacentCollection => {
            "a colon is not allowed here: put a value that holds a colon in quotation marks, and see that the indentation fits"
        }
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => {
            "a colon and a space are missing behind a key: write \"key: value\""
        }
        ErrorKind::ExpectedDocumentStart | ErrorKind::InvalidDocumentEnd | ErrorKind::MultipleDocumentsUnsupported => {
            "something follows the end of the document: begin a new one with a line ---"
        }
        ErrorKind::MissingDocumentEndBeforeDirective => {
            "a line that begins with % is not allowed inside of a document: end the document with a line ... before it"
        }
        ErrorKind::UnknownAnchor => "an alias (*) names an anchor (&) that does not stand before it: define the anchor",
        ErrorKind::MissingAnchorOrAliasName => {
            "a name is missing behind & or *: put a value that begins with one of them in quotation marks"
        }
        ErrorKind::RecursionLimitExceeded => "the text is nested deeper than 255 levels, the most that is read",
        ErrorKind::UnknownQuotedScalarEscape
        | ErrorKind::InvalidQuotedScalarHexEscape
        | ErrorKind::InvalidLowSurrogateHexEscape
        | ErrorKind::InvalidLowSurrogate
        | ErrorKind::MissingLowSurrogate
        | ErrorKind::UnpairedLowSurrogate
        | ErrorKind::InvalidUnicodeEscape => {
            "this escape is not known: write \\\\ for a backslash, or use single quotation marks"
        }
        ErrorKind::CommentNotSeparated | ErrorKind::CommentInterceptedScalar => {
            "a comment is not allowed here: write a space before #, and a comment on a line of its own between values"
        }
        ErrorKind::ZeroBlockScalarIndent | ErrorKind::InvalidBlockScalarHeader => {
            "only an indentation and - or + may follow | or >: begin the text on the next line"
        }
        ErrorKind::UndeclaredTagHandle => "a tag (!) is not known: remove it, or put the value in quotation marks",
        ErrorKind::ExpectedNodeContent | ErrorKind::PlainScalarStartsWithDashFlowIndicator => {
            "a value is missing here: write one, and put a value with special characters in quotation marks"
        }
        ErrorKind::BomInsideDocument => "a byte order mark is not allowed inside of a document: remove it",
        _ => "this is not valid YAML: correct it",
    })
}
