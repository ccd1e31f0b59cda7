//! All configurations of a source at once: what is wrong in several of them for one reason is said once.

use super::load::{MAX_CHECKPOINTS, load_one};
use super::source::{ConfigSource, Document, Named};
use super::value::quote;
use crate::error::{Error, Faults, Result};

/// What `validate` found.
#[derive(Debug, Clone, Default)]
pub struct Validation {
    /// The configurations that were looked at.
    pub names: Vec<String>,
    /// Every fault of all of them, once.
    pub faults: Faults,
    /// Every notice of those without a fault, once.
    pub notices: Vec<String>,
}

/// Looks for every fault of the configuration `name` of `source`, or of all its configurations.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read. Faults of its content are no error here but the answer.
pub fn validate(
    source: &ConfigSource,
    name: Option<&str>,
    overrides: &[String],
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Validation> {
    let mut found = Validation::default();
    let document = match Document::read(source) {
        Ok(document) => document,
        Err(error @ Error::Io { .. }) => return Err(error),
        Err(error) => {
            found.faults.absorb(error);
            return Ok(found);
        }
    };
    let (mut faults, mut notices) = (Vec::new(), Vec::new());
    let configs: Vec<&Named> = match name.map(|name| document.select(Some(name))) {
        None => document.configs.iter().collect(),
        Some(Ok(config)) => vec![config],
        Some(Err(error)) => {
            found.faults.absorb(error);
            return Ok(found);
        }
    };
    for named in configs {
        found.names.push(named.name.clone());
        match load_one(&document, named, overrides, env) {
            Ok(config) => notices.extend(config.notices.into_iter().map(|line| (&*named.name, line))),
            Err(error) => {
                let mut all = Faults::new();
                all.absorb(error);
                faults.extend(all.lines().map(|line| (&*named.name, line.to_owned())));
            }
        }
    }
    let places = Places { label: &document.label, overrides, of: found.names.len() };
    places.once(&faults).into_iter().for_each(|line| found.faults.push(line));
    found.notices = places.once(&notices);
    Ok(found)
}

/// What the places that messages begin with are made of.
struct Places<'a> {
    label: &'a str,
    overrides: &'a [String],
    /// How many configurations there are.
    of: usize,
}

impl Places<'_> {
    /// `line` without the name of its configuration: the place before it, and what is said after it.
    fn split<'l>(&self, name: &str, line: &'l str) -> Option<(&'l str, &'l str)> {
        let name = format!(": {}: ", quote(name, 60));
        let split = |length: usize| {
            let (place, rest) = line.split_at_checked(length)?;
            Some((place, rest.strip_prefix(&name)?))
        };
        let outside = self.overrides.iter().map(|text| format!("--set {}", quote(text, 80)));
        let outside = outside.chain([format!("environment {MAX_CHECKPOINTS}")]);
        let in_file = line.strip_prefix(self.label).map_or(0, |rest| {
            let digits = rest.strip_prefix(':').map_or(0, |r| r.bytes().take_while(u8::is_ascii_digit).count());
            self.label.len() + if digits > 0 { 1 + digits } else { 0 }
        });
        let lengths = outside.filter(|place| line.starts_with(place.as_str())).map(|place| place.len());
        lengths.chain([in_file]).find_map(split)
    }

    /// Lines of several configurations, each with its configuration's name. What several have in common is one line, which
    /// names the first of them, or none where all have it from outside the file.
    fn once(&self, lines: &[(&str, String)]) -> Vec<String> {
        let parts = lines.iter().map(|(name, line)| (*name, self.split(name, line), line.as_str()));
        // Place, text, and the configurations; in the order of their first appearance.
        let mut said: Vec<(&str, &str, Vec<&str>)> = Vec::new();
        for (name, split, line) in parts {
            let (place, rest, names) = split.map_or((line, "", vec![]), |(place, rest)| (place, rest, vec![name]));
            match said.iter_mut().find(|(p, r, _)| (*p, *r) == (place, rest)) {
                Some((.., all)) => all.extend(names),
                None => said.push((place, rest, names)),
            }
        }
        let text = |(place, rest, names): (&str, &str, Vec<&str>)| match &names[..] {
            [] => place.to_owned(),
            [_, _, ..] if names.len() == self.of && !place.starts_with(self.label) => format!("{place}: {rest}"),
            [first, others @ ..] => {
                let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
                format!("{place}: {}{more}: {rest}", quote(first, 60))
            }
        };
        said.into_iter().map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str, overrides: &[&str], env: Option<&str>) -> Vec<String> {
        let source = ConfigSource::Text { label: "my.yaml".into(), text: text.into() };
        let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
        let env = |_: &str| env.map(str::to_owned);
        let found = validate(&source, None, &overrides, &env).unwrap();
        found.faults.lines().map(str::to_owned).collect()
    }

    const THREE: &str = "a: {embed_dim: 96}\nb: {embed_dim: 96}\nc: {embed_dim: 60, num_heads: 4}\n";

    #[test]
    fn a_bad_value_from_outside_is_said_once_without_a_name() {
        let want = "batch_size=zero: training.batch_size: expected a whole number of at least 0, found the text \"zero\"; \
                    the default is 32";
        assert_eq!(faults(THREE, &["batch_size=zero"], None), [format!("--set {want}")]);
        assert_eq!(faults(THREE, &["batch=1"], None).len(), 1);
        let text = faults(THREE, &[], Some("-1"));
        assert!(text.len() == 1 && text[0].starts_with("environment MAX_CHECKPOINTS: training.max_check"), "{text:?}");
        assert!(faults("a: {}", &["batch_size=x"], None)[0].starts_with("--set batch_size=x: a: training.batch_size"));
    }

    #[test]
    fn what_some_configurations_share_names_the_first_and_counts_the_others() {
        let text = faults(THREE, &["num_heads=7"], None);
        assert_eq!(text.len(), 2, "{text:?}");
        assert!(
            text[0].starts_with("--set num_heads=7: a and 1 more: model.num_heads: expected a divisor of embed_dim 96")
        );
        assert!(text[1].starts_with("--set num_heads=7: c: model.num_heads: expected a divisor of embed_dim 60"));
    }

    #[test]
    fn lines_of_the_file_stay_apart_unless_they_are_inherited() {
        let text = faults("a: &a {dropout: 2}\nb: {<<: *a}\nc: {dropout: 2}\n", &[], None);
        assert_eq!(text.len(), 2, "{text:?}");
        assert!(text[0].starts_with("my.yaml:1: a and 1 more: model.dropout"), "{text:?}");
        assert!(text[1].starts_with("my.yaml:3: c: model.dropout"), "{text:?}");
    }
}
