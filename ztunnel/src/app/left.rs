//! The metrics of daemons that have handed over: each serves its own at a socket in the state directory until it ends, and the daemon of
//! the node shows them on its page.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::handover::socket;

/// The beginning of the names of these sockets. The rest is random, and the value of the label in the metrics.
const PREFIX: &str = "left-";
/// The end of these names.
const SUFFIX: &str = ".sock";
/// Time for one daemon to send its metrics.
const TIMEOUT: Duration = Duration::from_millis(500);
/// Maximum size of the metrics of one daemon, in bytes.
const LONGEST: u64 = 16 << 20;
/// Maximum number of daemons whose metrics are shown.
const MOST: usize = 16;
/// After a failed accept.
const PAUSE: Duration = Duration::from_secs(1);

/// Writes metrics.
pub trait Metrics: Send + Sync {
    /// The metrics of this daemon, in OpenMetrics without the last line.
    fn metrics(&self) -> impl Future<Output = String> + Send;
}

/// A daemon that has handed over.
#[derive(Debug, PartialEq, Eq)]
pub struct Left {
    /// Its name.
    pub name: String,
    /// Its metrics.
    pub metrics: String,
}

/// The file of a socket, removed on drop.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.0);
    }
}

/// Serves the metrics of this daemon to its successor, until the future is dropped.
pub async fn serve(state: PathBuf, metrics: Arc<impl Metrics>) {
    let name = format!("{PREFIX}{:08x}{SUFFIX}", fastrand::u32(..));
    let listener = match socket::listen(&state, &name) {
        Ok(listener) => listener,
        Err(error) => {
            return warn!(
                %error,
                "cannot listen in --state: the metrics page of the new daemon will not have the metrics of this \
                 daemon"
            );
        }
    };
    let _file = SocketFile(state.join(name));
    loop {
        let mut stream = match listener.accept().await {
            Ok((stream, _)) if socket::own(&stream).is_ok() => stream,
            Ok(_) => continue,
            Err(error) => {
                debug!(%error, "cannot accept at the socket of the metrics");
                sleep(PAUSE).await;
                continue;
            }
        };
        let text = metrics.metrics().await;
        let _reader_gone = timeout(TIMEOUT, stream.write_all(text.as_bytes())).await;
    }
}

/// The metrics of all daemons that have handed over and run. Sockets of daemons that have ended are removed.
pub async fn all(state: &Path) -> Vec<Left> {
    let Ok(entries) = fs::read_dir(state) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)).collect();
    names.sort();
    names.truncate(MOST);
    let asked = join_all(names.iter().map(|name| timeout(TIMEOUT, ask(state, name)))).await;
    let answered = names.iter().zip(asked).filter_map(|(name, answer)| match answer {
        Ok(Ok(metrics)) => {
            let name = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.to_owned();
            Some(Left { name, metrics })
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let _gone_already = fs::remove_file(state.join(name));
            None
        }
        Ok(Err(_)) | Err(_) => None,
    });
    answered.collect()
}

async fn ask(state: &Path, name: &str) -> io::Result<String> {
    let stream = socket::connect(state, name).await?;
    let mut text = String::new();
    stream.take(LONGEST).read_to_string(&mut text).await?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{Left, Metrics, all, serve};
    use crate::lifecycle::tasks::{TaskCount, TaskSet};
    use std::{sync::Arc, time::Duration};
    use tracing::Span;

    /// One counter.
    struct One;

    impl Metrics for One {
        async fn metrics(&self) -> String {
            "# TYPE a counter\na_total 1\n".to_owned()
        }
    }

    #[tokio::test]
    async fn a_daemon_that_has_handed_over_is_read_until_it_ends() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(all(state.path()).await, []);
        let mut serving = TaskSet::new(TaskCount::default());
        serving.spawn(Span::none(), serve(state.path().to_owned(), Arc::new(One)));
        let left = loop {
            match all(state.path()).await.pop() {
                Some(left) => break left,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        assert_eq!(left.metrics, "# TYPE a counter\na_total 1\n");
        let names = || std::fs::read_dir(state.path()).unwrap().count();
        assert_eq!(names(), 1);
        serving.abort_all().await;
        assert_eq!((all(state.path()).await, names()), (Vec::<Left>::new(), 0));
        // One that was killed has left its socket.
        drop(std::os::unix::net::UnixListener::bind(state.path().join("left-0.sock")).unwrap());
        std::fs::write(state.path().join("left-other"), "").unwrap();
        assert_eq!((all(state.path()).await, names()), (Vec::<Left>::new(), 1));
    }
}
