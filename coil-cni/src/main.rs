//! The coil CNI plugin: passes what the runtime asks to coild, and prints its answer.
//!
//! ```text
//! environment, input ──► call (gRPC on coild's socket) ──► output ──► stdout
//!                          └─► alone: DEL while coild is down
//! ```

mod alone;
mod call;
mod environment;
mod input;
mod output;

use std::{
    io::{IsTerminal as _, Read as _},
    process::ExitCode,
};

use coil_api::cni::{ErrorDocument, SUPPORTED_VERSIONS, code};
use environment::{Command, Environment};

fn main() -> ExitCode {
    let environment = Environment::read(|name| std::env::var(name).ok());
    let mut stdin = Vec::new();
    match run(&environment, &mut stdin) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(document)) => {
            println!("{document}");
            ExitCode::SUCCESS
        }
        Err(mut error) => {
            if std::io::stdout().is_terminal() {
                eprintln!(
                    "coil {}, a CNI plugin ({}): container runtimes start it.",
                    env!("CARGO_PKG_VERSION"),
                    SUPPORTED_VERSIONS.join(", ")
                );
            }
            error.cni_version = output::error_version(&stdin);
            println!("{}", output::pretty(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(environment: &Environment, stdin: &mut Vec<u8>) -> Result<Option<String>, ErrorDocument> {
    let mut input = std::io::stdin();
    // Nobody types a configuration.
    if !input.is_terminal() {
        input
            .read_to_end(stdin)
            .map_err(|e| error(code::IO_FAILURE, format!("cannot read the network configuration: {e}")))?;
    }
    let command = environment.command()?;
    if command == Command::Version {
        return Ok(Some(output::versions(stdin)));
    }
    let request = input::request(command, environment, stdin)?;
    let answer = call::coild(command, &request)?;
    match (answer, request.previous) {
        // A plugin that changes nothing of the result before it passes that on.
        (Some(_), Some(previous)) => Ok(Some(previous.to_string())),
        (Some(result), None) => output::result(&result, &request.version).map(Some),
        (None, _) => Ok(None),
    }
}

/// An error of the plugin itself; `main` adds the version.
fn error(code: u32, msg: impl Into<String>) -> ErrorDocument {
    ErrorDocument { cni_version: String::new(), code, msg: msg.into(), details: String::new() }
}

/// Whether the plugin speaks a version.
fn is_supported(version: &str) -> bool {
    SUPPORTED_VERSIONS.contains(&version)
}
