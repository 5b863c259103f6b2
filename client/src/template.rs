//! Text with the addresses of files in it: `{{ ID "path" }}` and `{{ URL "address" }}`.
//!
//! Guarantees: pure; a text has one meaning for every machine, only the addresses differ. The
//! language is what Pixiecore's command lines use of Go's text/template: one function with one
//! string, or a string alone, with `{{-` and `-}}` taking the blanks beside them away. Anything else
//! between the braces is an error, never passed on.

/// Text, and numbers of files between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The number of an extra file of the generation.
    File(usize),
}

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// No `}}`.
    #[error("\"{{{{\" without \"}}}}\" after it")]
    Open,
    /// Not the function that there is, with one string.
    #[error("{{{{{found}}}}} is not known here: write {{{{ {function} \"...\" }}}}")]
    Unknown {
        /// What stands between the braces.
        found: String,
        /// The function that there is.
        function: &'static str,
    },
}

impl Template {
    /// Reads a template. `file` is called with each argument of `function` (`ID` or `URL`), and
    /// says which number the file has. Blanks at both ends are dropped.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn parse(
        text: &str,
        function: &'static str,
        mut file: impl FnMut(String) -> usize,
    ) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text.trim();
        while let Some((before, after)) = rest.split_once("{{") {
            let trimmed = after.strip_prefix("- ");
            let inside = trimmed.unwrap_or(after).trim_start();
            let unknown = || TemplateError::Unknown {
                found: after.split("}}").next().unwrap_or_default().to_owned(),
                function,
            };
            let (is_file, argument) = match inside.strip_prefix(function) {
                Some(argument) => (true, argument.trim_start()),
                None => (false, inside),
            };
            let Some((value, tail)) = string(argument) else {
                return Err(if after.contains("}}") { unknown() } else { TemplateError::Open });
            };
            let tail_bare = tail.trim_start();
            let (after, trim_after) = match tail_bare.strip_prefix("}}") {
                Some(after) => (after, false),
                None => match tail_bare.strip_prefix("-}}") {
                    Some(after) if tail.starts_with(char::is_whitespace) => (after, true),
                    _ if tail.contains("}}") => return Err(unknown()),
                    _ => return Err(TemplateError::Open),
                },
            };
            let before = if trimmed.is_some() { before.trim_end() } else { before };
            parts.push(Part::Text(before.to_owned()));
            parts.push(if is_file { Part::File(file(value)) } else { Part::Text(value) });
            rest = if trim_after { after.trim_start() } else { after };
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        Ok(Self(parts))
    }

    /// The text for one machine: `url` is what its files' addresses begin with, without a slash at
    /// the end.
    #[must_use]
    pub fn text(&self, url: &str) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::File(number) => format!("{url}/other{number}"),
            })
            .collect()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A text without any file.
impl<T: Into<String>> From<T> for Template {
    fn from(text: T) -> Self {
        let text = text.into();
        if text.is_empty() { Self::default() } else { Self(vec![Part::Text(text)]) }
    }
}

/// A string of Go's at the beginning of `text`, and what follows it: `"..."` with `\"`, `\\`, `\t`
/// and `\n`, or `` `...` `` as it stands.
fn string(text: &str) -> Option<(String, &str)> {
    if let Some(raw) = text.strip_prefix('`') {
        return raw.split_once('`').map(|(value, rest)| (value.to_owned(), rest));
    }
    let mut value = String::new();
    let mut characters = text.strip_prefix('"')?.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return Some((value, characters.as_str())),
            '\\' => value.push(match characters.next()? {
                't' => '\t',
                'n' => '\n',
                same @ ('"' | '\\') => same,
                _ => return None,
            }),
            '\n' => return None,
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(String, Vec<String>), TemplateError> {
        let mut files = Vec::new();
        let template = Template::parse(text, "ID", |file| {
            files.push(file);
            files.len() - 1
        })?;
        Ok((template.text("http://h/t"), files))
    }

    #[test]
    fn section_1_4_id_becomes_an_address_and_the_rest_stays() {
        let (text, files) = read(" a={{ ID \"x y\" }} b={{ID `c\\d`}},c \n").unwrap();
        assert_eq!(text, "a=http://h/t/other0 b=http://h/t/other1,c");
        assert_eq!(files, ["x y", "c\\d"]);
        assert_eq!(read("no braces { } here").unwrap().0, "no braces { } here");
        assert_eq!(read("").unwrap().0, "");
    }

    #[test]
    fn escapes_trim_marks_and_literal_braces_are_those_of_go() {
        assert_eq!(read(r#"{{ ID "a\"b\\" }}"#).unwrap().1, [r#"a"b\"#]);
        assert_eq!(read("a  {{- ID `f` -}}  b").unwrap().0, "ahttp://h/t/other0b");
        assert_eq!(read(r#"x={{"{{"}}y}}"#).unwrap().0, "x={{y}}");
    }

    #[test]
    fn what_is_not_known_is_an_error_that_says_what_is() {
        for wrong in ["{{ URL \"x\" }}", "{{ ID }}", "{{ ID x }}", "{{ ID \"x\" \"y\" }}", "{{}}"] {
            let error = read(wrong).unwrap_err();
            assert!(matches!(error, TemplateError::Unknown { .. }), "{wrong}: {error}");
            assert!(error.to_string().contains("{{ ID \"...\" }}"), "{error}");
        }
        for wrong in ["{{", "a {{ ID \"x\"", "{{ ID \"x }"] {
            assert_eq!(read(wrong).unwrap_err(), TemplateError::Open, "{wrong}");
        }
    }
}
