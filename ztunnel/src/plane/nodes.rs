//! Nodes proved by tokens in a directory. The directory has one file for each node; the name of the file is the node's
//! name.
//!
//! A file has the token itself, or `sha256:` and the hexadecimal SHA-256 of the token. With digests, a reader of the
//! directory cannot connect as a node. The directory is watched: when a token is removed, the streams of its node end.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use thiserror::Error;
use tokio::sync::watch;
use tracing::{Span, info, warn};

use super::caller::{Caller, Digest, sha256};
use crate::{
    identity::poll::{self, Polled},
    lifecycle::tasks::{TaskCount, TaskSet},
    model::name::check_name,
};

/// A token has at least this many bytes: half of the output of `openssl rand -hex 32`.
const SHORTEST: usize = 32;
/// A token has at most this many bytes. Tokens of Kubernetes have about 1200.
const LONGEST: usize = 8 << 10;
/// The beginning of a file that has the digest of a token.
const DIGEST: &str = "sha256:";

/// The tokens of all nodes. Clones share their state.
#[derive(Clone, Debug)]
pub struct NodeTokens {
    shared: Arc<Shared>,
    /// Watches the directory as long as a clone exists.
    _watch: Arc<TaskSet>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    tokens: ArcSwap<Tokens>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Tokens {
    nodes: HashMap<Digest, Arc<str>>,
    state: Listing,
}

/// Name, inode, size and times of each file, to detect that the directory has changed.
type Listing = Vec<(String, u64, u64, Option<SystemTime>, i64)>;

/// Why the directory of tokens cannot be used.
#[derive(Debug, Error)]
#[error("cannot read the directory of node tokens {}: create it, or correct --node-tokens", dir.display())]
pub struct OpenTokensError {
    dir: PathBuf,
    source: io::Error,
}

/// Why the file of a token is ignored.
#[derive(Debug, Error)]
enum TokenError {
    #[error("cannot read it")]
    Unreadable(#[from] io::Error),
    #[error("{0}")]
    Name(String),
    #[error("it is not a regular file")]
    NotRegular,
    #[error(
        "users other than its owner can read it: run chmod 600, or write sha256: and the token's SHA-256 \
         instead of the token"
    )]
    Open,
    #[error("it must have one token of {SHORTEST} to {LONGEST} bytes without spaces; `openssl rand -hex 32` makes one")]
    Length,
    #[error("after sha256: it must have the 64 hexadecimal digits of a token's SHA-256")]
    Digest,
}

impl NodeTokens {
    /// Reads the tokens of a directory, and watches it from then on. Has to be called within a runtime.
    ///
    /// # Errors
    /// The directory cannot be read. A file that is not valid is reported in the log, and its node cannot connect.
    pub fn open(dir: PathBuf, tasks: TaskCount) -> Result<Self, OpenTokensError> {
        let tokens = Tokens::read(&dir).map_err(|source| OpenTokensError { dir: dir.clone(), source })?;
        info!(
            dir = %dir.display(), nodes = tokens.nodes.len(),
            "nodes authenticate with the tokens of a directory"
        );
        let shared = Arc::new(Shared { dir, tokens: ArcSwap::from_pointee(tokens), changed: watch::Sender::new(0) });
        let mut watch = TaskSet::new(tasks);
        watch.spawn(Span::none(), poll::poll(Arc::clone(&shared)));
        Ok(Self { shared, _watch: Arc::new(watch) })
    }

    /// The node to which a token belongs.
    #[must_use]
    pub fn authenticate(&self, token: &[u8]) -> Option<Caller> {
        let token = sha256(token);
        // The time of this search tells nothing: it depends on a digest, and a caller cannot know the digest of a token
        // without the token.
        let tokens = self.shared.tokens.load();
        let (known, node) = tokens.nodes.get_key_value(&token)?;
        verify_slices_are_equal(known, &token).ok()?;
        Some(Caller { node: Arc::clone(node), token })
    }

    /// Whether a caller's token is still accepted.
    #[must_use]
    pub fn knows(&self, caller: &Caller) -> bool {
        self.shared.tokens.load().nodes.get(&caller.token) == Some(&caller.node)
    }

    /// A receiver that is notified when the tokens change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// The number of nodes that have a token.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.tokens.load().nodes.len()
    }

    /// Whether no node has a token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Tokens {
    fn read(dir: &Path) -> io::Result<Self> {
        let state = listing(dir)?;
        let mut nodes: HashMap<Digest, Vec<Arc<str>>> = HashMap::new();
        for (name, ..) in &state {
            match token(dir, name) {
                Ok(digest) => nodes.entry(digest).or_default().push(name.as_str().into()),
                Err(error) => {
                    let why = crate::model::cause::causes(&error);
                    warn!(
                        file = %dir.join(name).display(), error = why,
                        "the token file of a node is not valid: the node cannot connect"
                    );
                }
            }
        }
        let nodes = nodes.into_iter().filter_map(|(digest, names)| match names.as_slice() {
            [only] => Some((digest, Arc::clone(only))),
            several => {
                warn!(
                    nodes = several.join(", "),
                    "several nodes have the same token: none of them can connect; create a token for each node"
                );
                None
            }
        });
        Ok(Self { nodes: nodes.collect(), state })
    }
}

fn listing(dir: &Path) -> io::Result<Listing> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // A mounted Secret has links with names like these (`..data`).
        if name.starts_with('.') {
            continue;
        }
        let stamp = match fs::metadata(dir.join(&name)) {
            Ok(metadata) => (metadata.ino(), metadata.size(), metadata.modified().ok(), metadata.ctime_nsec()),
            Err(_) => (0, 0, None, 0),
        };
        found.push((name, stamp.0, stamp.1, stamp.2, stamp.3));
    }
    found.sort();
    Ok(found)
}

fn token(dir: &Path, name: &str) -> Result<Digest, TokenError> {
    check_name(name).map_err(TokenError::Name)?;
    let path = dir.join(name);
    let metadata = fs::metadata(&path)?;
    // This comes before the file is opened: opening a pipe would block.
    if !metadata.is_file() {
        return Err(TokenError::NotRegular);
    }
    let mut text = String::new();
    fs::File::open(&path)?.take(LONGEST as u64 + 1).read_to_string(&mut text)?;
    let text = text.trim();
    if let Some(digest) = text.strip_prefix(DIGEST) {
        return from_hex(digest.trim()).ok_or(TokenError::Digest);
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(TokenError::Open);
    }
    if !(SHORTEST..=LONGEST).contains(&text.len()) || text.contains(char::is_whitespace) {
        return Err(TokenError::Length);
    }
    Ok(sha256(text.as_bytes()))
}

fn from_hex(text: &str) -> Option<Digest> {
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> =
        digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |sum, digit| sum << 4 | digit)).collect();
    (digits.len() == 64).then(|| bytes.try_into().ok())?
}

impl Polled for Shared {
    type State = Result<Listing, String>;

    fn news(&self) -> Option<Self::State> {
        let state = listing(&self.dir).map_err(|error| error.to_string());
        (state.as_ref() != Ok(&self.tokens.load().state)).then_some(state)
    }

    fn take_up(&self) -> Result<(), String> {
        let tokens = Tokens::read(&self.dir).map_err(|error| error.to_string())?;
        info!(dir = %self.dir.display(), nodes = tokens.nodes.len(), "the node tokens have changed");
        self.tokens.store(Arc::new(tokens));
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    fn name(&self) -> String {
        format!("node tokens in {}", self.dir.display())
    }
}

#[cfg(test)]
mod tests;
