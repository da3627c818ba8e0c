//! The log of the process: text on a terminal, JSON elsewhere, on standard error. `RUST_LOG` chooses
//! what is logged (default info), `LOG_FORMAT` overrides the form. Set up once, by main.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

const FORMAT_VARIABLE: &str = "LOG_FORMAT";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// Installs the subscriber. A second call in the same process changes nothing.
pub fn init() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let is_terminal = io::stderr().is_terminal();
    let installed = match format(std::env::var(FORMAT_VARIABLE).ok().as_deref(), is_terminal) {
        Format::Text => builder.with_ansi(is_terminal).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(error) = installed {
        tracing::debug!(%error, "the log was set up before");
    }
}

fn format(asked: Option<&str>, is_terminal: bool) -> Format {
    match asked {
        Some("text") => Format::Text,
        Some("json") => Format::Json,
        _ if is_terminal => Format::Text,
        _ => Format::Json,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_terminal_decides_unless_a_form_is_asked_for() {
        assert_eq!(format(None, true), Format::Text);
        assert_eq!(format(None, false), Format::Json);
        assert_eq!(format(Some("text"), false), Format::Text);
        assert_eq!(format(Some("json"), true), Format::Json);
        assert_eq!(format(Some("xml"), false), Format::Json);
    }
}
