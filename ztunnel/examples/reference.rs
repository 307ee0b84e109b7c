//! Prints the generated parts of the documents as JSON, an object of names and texts, for `cargo xtask docs`.

use std::collections::BTreeMap;
use std::process::ExitCode;

fn main() -> ExitCode {
    let parts = ztunnel::app::reference::parts().map(|parts| parts.into_iter().collect::<BTreeMap<_, _>>());
    match parts.map_err(anyhow::Error::new).and_then(|parts| Ok(serde_json::to_string_pretty(&parts)?)) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: could not make the generated parts of the documents: {error:#}");
            ExitCode::FAILURE
        }
    }
}
