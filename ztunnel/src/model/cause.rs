//! An error and its causes in one line.

use std::error::Error;

/// An error and its causes in one line; a cause whose text is in the line already is left out.
#[must_use]
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::causes;
    use std::io;

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot make it: {0}")]
        struct Loud(#[source] Silent);
        #[derive(Debug, thiserror::Error)]
        #[error("no map")]
        struct Silent(#[source] io::Error);
        let error = Loud(Silent(io::Error::other("out of memory")));
        assert_eq!(causes(&error), "cannot make it: no map: out of memory");
    }
}
