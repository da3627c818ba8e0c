//! The configuration file: the settings of `kv-node serve` under their flags' names, as YAML. Reads it
//! into flags, so that they are checked in one place.

use std::path::Path;

use serde_yaml::Value;

use super::ConfigError;

/// One setting of the file: the flag's name and its value in text.
pub(super) type FileSetting = (String, String);

/// The settings that stand in the file. `known` are the flags that it may name.
pub(super) fn read(path: &Path, known: &[String]) -> Result<Vec<FileSetting>, ConfigError> {
    let refused = |reason: String| ConfigError::File { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    parse(&text, known).map_err(refused)
}

fn parse(text: &str, known: &[String]) -> Result<Vec<FileSetting>, String> {
    let settings = match serde_yaml::from_str(text).map_err(|error| error.to_string())? {
        Value::Mapping(settings) => settings,
        Value::Null => return Ok(Vec::new()),
        _ => return Err("it must be a mapping of settings to values".into()),
    };
    let mut read = Vec::new();
    for (name, value) in settings {
        let name = name.as_str().ok_or_else(|| format!("{name:?} is not the name of a setting"))?.to_owned();
        // `data_dir` as in cluster files and `data-dir` as on the command line are the same setting.
        let flag = name.replace('_', "-");
        if !known.contains(&flag) {
            return Err(format!("unknown setting {name}"));
        }
        if read.iter().any(|(earlier, _)| *earlier == flag) {
            return Err(format!("{name} is set twice"));
        }
        if let Some(value) = scalar(&value).map_err(|reason| format!("{name} {reason}"))? {
            read.push((flag, value));
        }
    }
    Ok(read)
}

/// None: the setting is there without a value, which leaves it unset.
fn scalar(value: &Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(flag) => Ok(Some(flag.to_string())),
        Value::Number(number) => Ok(Some(number.to_string())),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => Err("must be one value".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_known(text: &str) -> Result<Vec<FileSetting>, String> {
        parse(text, &["id".to_owned(), "data-dir".to_owned(), "join".to_owned()])
    }

    #[test]
    fn both_spellings_of_a_name_are_the_same_setting() {
        let read = parse_known("id: n1\ndata_dir: /data\njoin: true\n").unwrap();
        let expected = [("id", "n1"), ("data-dir", "/data"), ("join", "true")];
        assert_eq!(read, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert!(parse_known("data_dir: a\ndata-dir: b\n").unwrap_err().contains("twice"));
    }

    #[test]
    fn an_unknown_setting_is_named() {
        assert_eq!(parse_known("data_dri: /data\n").unwrap_err(), "unknown setting data_dri");
    }

    #[test]
    fn an_empty_file_sets_nothing() {
        assert_eq!(parse_known("# nothing\n").unwrap(), []);
        assert_eq!(parse_known("id:\n").unwrap(), []);
    }

    #[test]
    fn a_list_is_no_value() {
        assert_eq!(parse_known("id: [a]\n").unwrap_err(), "id must be one value");
    }
}
