//! Running the command `twoclocks` as a user does.

use serde_json::Value;
use std::process::{Command, Output};

/// The command, as built for this test.
pub fn twoclocks() -> Command {
    Command::new(env!("CARGO_BIN_EXE_twoclocks"))
}

/// Standard error, for messages of failed assertions.
pub fn text(output: &Output) -> String {
    format!(
        "status {:?}\nstdout: {}\nstderr: {}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The lines of standard output, each of which must be one JSON object with an `event`.
pub fn json_lines(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).expect("UTF-8");
    text.lines()
        .map(|line| {
            let value: Value =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in line: {line}"));
            assert!(value["event"].is_string(), "no event in {line}");
            value
        })
        .collect()
}
