//! The coil CNI plugin: passes what the runtime asks to coild, and prints its answer.
//!
//! ```text
//! environment, stdin ──► input ──► call (gRPC on coild's socket) ──► output ──► stdout
//! ```

mod call;
mod input;
mod output;

use std::{io::Read, process::ExitCode};

use coil_api::cni::{ErrorDocument, SUPPORTED_VERSIONS, code};
use input::{Command, Environment};

fn main() -> ExitCode {
    let mut stdin = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut stdin);
    let environment = Environment::read(|name| std::env::var(name).ok());
    let result = match read {
        Ok(_) => run(&environment, &stdin),
        Err(e) => Err(error(code::IO_FAILURE, format!("cannot read the network configuration: {e}"))),
    };
    match result {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(document)) => {
            println!("{document}");
            ExitCode::SUCCESS
        }
        Err(mut error) => {
            error.cni_version = output::error_version(&stdin);
            println!("{}", output::pretty(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(environment: &Environment, stdin: &[u8]) -> Result<Option<String>, ErrorDocument> {
    let command = environment.command()?;
    if command == Command::Version {
        return Ok(Some(output::versions(stdin)?));
    }
    let request = input::request(command, environment, stdin)?;
    let answer = call::coild(command, &request)?;
    answer.map(|result| output::result(&result, &request.version)).transpose()
}

/// An error of the plugin itself; `main` adds the version.
fn error(code: u32, msg: impl Into<String>) -> ErrorDocument {
    ErrorDocument { cni_version: String::new(), code, msg: msg.into(), details: String::new() }
}

/// Whether the plugin speaks a version.
fn is_supported(version: &str) -> bool {
    SUPPORTED_VERSIONS.contains(&version)
}
