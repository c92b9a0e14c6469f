//! Certificates from mounted files.
//!
//! The files are read again and again, and compared by content: a Secret volume is changed by moving a link
//! two levels above, and other tools write in place, so no single event tells of all changes.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tracing::{info, warn};

use super::{Served, State, pair};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

type Contents = (Vec<u8>, Vec<u8>);

/// Keeps the served certificate equal to the files.
pub(super) async fn follow(dir: PathBuf, served: Arc<Served>, state: State) -> Infallible {
    let mut watch = Follower::new(dir);
    loop {
        match watch.look() {
            Look::Same => {}
            Look::New(key) => {
                state.serving(&key);
                let replaced = served.replace(key);
                info!(directory = %watch.dir.display(), replaced, "serving the webhook certificate");
                state.ready();
            }
            Look::Bad(why) => {
                if served.current().is_some() {
                    warn!(why, "the new webhook certificate cannot be used; the old one stays");
                } else {
                    warn!(why, "the webhook certificate cannot be used");
                    state.waiting(&why);
                }
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// What a look found.
#[derive(Debug)]
enum Look {
    Same,
    New(Arc<tokio_rustls::rustls::sign::CertifiedKey>),
    /// Told once for what is in the files.
    Bad(String),
}

/// What is known of the files.
#[derive(Debug)]
struct Follower {
    dir: PathBuf,
    /// What is served.
    good: Option<Contents>,
    /// What could not be used the last time, and whether it was told. Told only at the second look: the two
    /// files may be read while they change.
    bad: Option<(Result<Contents, String>, bool)>,
}

impl Follower {
    fn new(dir: PathBuf) -> Self {
        Self { dir, good: None, bad: None }
    }

    fn look(&mut self) -> Look {
        let found = read(&self.dir);
        let why = match &found {
            Ok(contents) if Some(contents) == self.good.as_ref() => {
                self.bad = None;
                return Look::Same;
            }
            Ok((chain, key)) => match pair::certified(chain, key) {
                Ok(pair) => {
                    self.good = found.ok();
                    self.bad = None;
                    return Look::New(pair);
                }
                Err(why) => format!("{}: {why}", self.dir.display()),
            },
            Err(why) => why.clone(),
        };
        match &mut self.bad {
            Some((known, told)) if *known == found => {
                if std::mem::replace(told, true) {
                    Look::Same
                } else {
                    Look::Bad(why)
                }
            }
            // With nothing served there is nothing to wait for before it is told.
            bad => {
                let first = self.good.is_none();
                *bad = Some((found, first));
                if first { Look::Bad(why) } else { Look::Same }
            }
        }
    }
}

fn read(dir: &Path) -> Result<Contents, String> {
    let file = |name: &str| {
        let path = dir.join(name);
        std::fs::read(&path).map_err(|e| {
            format!(
                "cannot read {}: {e}; mount the Secret with the certificate there, set --cert-dir, or set --enable-cert-rotation=true",
                path.display()
            )
        })
    };
    Ok((file("tls.crt")?, file("tls.key")?))
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
