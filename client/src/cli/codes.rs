//! The codes that `explain` knows, as the shells complete them. Any other text is taken, too.

use std::{collections::BTreeSet, ffi::OsStr};

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};

use crate::codes;

/// All codes, each once.
fn names() -> BTreeSet<&'static str> {
    codes::data().codes.iter().map(|entry| entry.code.as_str()).collect()
}

/// What the generator of fish's completions leaves out: it writes no values of arguments without a dash.
#[must_use]
pub fn fish_codes() -> String {
    let names: Vec<_> = names().into_iter().collect();
    format!(
        "complete -c portcullis -n \"__fish_portcullis_using_subcommand explain\" -f -a \"{}\"\n",
        names.join(" ")
    )
}

/// Takes any text, and offers the codes that are known to the shells' completion.
#[derive(Clone, Debug)]
pub struct ScreenCode;

impl TypedValueParser for ScreenCode {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(names().into_iter().map(PossibleValue::new)))
    }
}
