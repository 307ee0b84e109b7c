//! A scripted Kubernetes API in the network namespace of a node, with the part of the API that the local source of a
//! daemon uses. Behaviour that only a real API server has is tested in the tier `cluster`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::netns::Netns;

/// The API server. Dropping it closes all connections.
#[derive(Debug)]
pub struct Api {
    state: Arc<Shared>,
    address: SocketAddr,
    kubeconfig: PathBuf,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// By plural and by `namespace/name`.
    objects: BTreeMap<(&'static str, String), Value>,
    /// All events since the start; the version of an event is its place, from 1.
    events: Vec<(&'static str, &'static str, Value)>,
    is_away: bool,
    is_over: bool,
    open: Vec<TcpStream>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Api {
    /// Starts it on the loopback of a node, with an empty cluster, and writes a kubeconfig into a folder.
    ///
    /// # Errors
    /// When it can't listen, or the file can't be written.
    pub fn start(netns: &Netns, folder: &Path) -> Result<Self> {
        let listener = netns.run(|| TcpListener::bind("127.0.0.1:0"))?.context("cannot listen")?;
        let address = listener.local_addr()?;
        let state = Arc::<Shared>::default();
        let serving = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut state = serving.lock();
                if state.is_over {
                    return;
                }
                if state.is_away {
                    continue;
                }
                state.open.extend(stream.try_clone());
                drop(state);
                let shared = Arc::clone(&serving);
                thread::spawn(move || {
                    let _closed = serve(stream, &shared);
                });
            }
        });
        let kubeconfig = folder.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "u", "user": {"token": "scripted"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        fs::write(&kubeconfig, config.to_string())?;
        Ok(Self { state, address, kubeconfig })
    }

    /// The kubeconfig file for it.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Creates an object, or changes it.
    pub fn apply(&self, plural: &'static str, mut object: Value) {
        let mut state = self.state.lock();
        let key = (plural, key(&object));
        let kind = if state.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".to_owned(), (state.events.len() + 1).to_string().into());
        }
        state.objects.insert(key, object.clone());
        state.events.push((plural, kind, object));
        self.state.changed.notify_all();
    }

    /// Deletes an object, if it exists.
    pub fn delete(&self, plural: &'static str, name: &str) {
        let mut state = self.state.lock();
        if let Some(object) = state.objects.remove(&(plural, name.to_owned())) {
            state.events.push((plural, "DELETED", object));
        }
        self.state.changed.notify_all();
    }

    /// Closes all connections and refuses new ones, or accepts them again.
    pub fn set_away(&self, is_away: bool) {
        let mut state = self.state.lock();
        state.is_away = is_away;
        close(&mut state);
        self.state.changed.notify_all();
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        state.is_over = true;
        close(&mut state);
        drop(state);
        self.state.changed.notify_all();
        // The connection wakes the accepting thread. That is in the node's namespace, which may be gone already.
        let _woken = TcpStream::connect_timeout(&self.address, Duration::from_millis(10));
    }
}

fn close(state: &mut State) {
    for stream in state.open.drain(..) {
        let _closed = stream.shutdown(Shutdown::Both);
    }
}

fn key(object: &Value) -> String {
    let text = |field: &str| {
        object.pointer(&format!("/metadata/{field}")).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    format!("{}/{}", text("namespace"), text("name"))
}

/// Whether an object has the field value that a request selects.
fn is_selected(object: &Value, line: &str) -> bool {
    let Some((_, selector)) = line.split_once("fieldSelector=") else { return true };
    let selector = selector.split('&').next().unwrap_or_default().replace("%3D", "=").replace("%2F", "/");
    let Some((field, value)) = selector.split_once('=') else { return true };
    object.pointer(&format!("/{}", field.replace('.', "/"))).and_then(Value::as_str) == Some(value)
}

fn serve(mut stream: TcpStream, shared: &Shared) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if header.trim().is_empty() {
                break;
            }
        }
        reader.read_exact(&mut vec![0; length])?;
        let target = line.split_whitespace().nth(1).context("no target")?.to_owned();
        let plural = ["namespaces", "pods", "nodes"].into_iter().find(|plural| target.contains(&format!("/{plural}?")));
        let plural = plural.with_context(|| format!("nothing is scripted for {target}"))?;
        if target.contains("watch=true") {
            return watch(&mut stream, shared, plural, &target);
        }
        let body = {
            let state = shared.lock();
            let all = state.objects.iter().filter(|((of, _), object)| *of == plural && is_selected(object, &target));
            let items: Vec<_> = all.map(|(_, object)| object).collect();
            json!({"metadata": {"resourceVersion": state.events.len().to_string()}, "items": items}).to_string()
        };
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes())?;
    }
}

fn watch(stream: &mut TcpStream, shared: &Shared, plural: &str, target: &str) -> Result<()> {
    let version = target.split_once("resourceVersion=").context("a watch from no version")?.1;
    let mut seen: usize = version.split('&').next().unwrap_or_default().parse()?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")?;
    loop {
        let news: Vec<_> = {
            let state = shared.lock();
            let waited = shared.changed.wait_timeout_while(state, Duration::from_secs(1), |state| {
                state.events.len() <= seen && !state.is_over && !state.is_away
            });
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.is_over || state.is_away {
                return Ok(());
            }
            let news = state.events.get(seen..).unwrap_or_default().to_vec();
            seen = state.events.len();
            news
        };
        for (of, kind, object) in news {
            if of == plural && is_selected(&object, target) {
                let line = format!("{}\n", json!({"type": kind, "object": object}));
                stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes())?;
            }
        }
    }
}
