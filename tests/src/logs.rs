//! The daemon's log: one JSON object in each line, read from the log file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// The direction of a connection, from the pod's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the pod.
    Outbound,
    /// To the pod.
    Inbound,
}

/// A line about a closed or refused connection.
#[derive(Debug, Clone)]
pub struct Access {
    /// The direction.
    pub direction: Direction,
    /// `src.addr`; IPv4 in IPv6 is shown as IPv4.
    pub src: SocketAddr,
    /// `dst.addr`, likewise.
    pub dst: SocketAddr,
    /// `bytes_sent`: bytes that the pod's side sent.
    pub sent: u64,
    /// `bytes_recv`: bytes that the pod's side received.
    pub received: u64,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// The whole line.
    pub line: Value,
}

impl Access {
    fn parse(line: &Value) -> Option<Self> {
        // A line at the opening (at debug level), or about a policy in dry-run, is not about the end of a connection.
        let message = line.get("message")?.as_str()?;
        if line.get("scope")?.as_str()? != "access" || ["connection opened", "policy"].contains(&message) {
            return None;
        }
        let direction = match line.get("direction")?.as_str()? {
            "outbound" => Direction::Outbound,
            "inbound" => Direction::Inbound,
            _ => return None,
        };
        Some(Self {
            direction,
            src: address(line.get("src.addr")?)?,
            dst: address(line.get("dst.addr")?)?,
            sent: number(line.get("bytes_sent")),
            received: number(line.get("bytes_recv")),
            error: line.get("error").and_then(Value::as_str).map(ToOwned::to_owned),
            line: line.clone(),
        })
    }
}

/// An address with an IPv4 address in IPv6 unwrapped.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

impl Access {
    /// The destination that the client asked for: `dst.hbone_addr` through HBONE, else `dst.addr`.
    #[must_use]
    pub fn asked(&self) -> SocketAddr {
        self.line.get("dst.hbone_addr").and_then(address).unwrap_or(self.dst)
    }

    /// Whether it went through HBONE.
    #[must_use]
    pub fn is_tunnelled(&self) -> bool {
        self.line.get("dst.hbone_addr").is_some()
    }

    /// The value of a text field; empty if the field is missing.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        self.line.get(name).and_then(Value::as_str).unwrap_or("")
    }
}

fn address(value: &Value) -> Option<SocketAddr> {
    Some(canonical(value.as_str()?.parse().ok()?))
}

fn number(value: Option<&Value>) -> u64 {
    let Some(value) = value else { return 0 };
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

/// Reads a growing log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    offset: u64,
    partial: Vec<u8>,
    lines: Vec<String>,
    access: Vec<Access>,
}

impl LogFile {
    /// A log that exists, or will exist, at `path`.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), offset: 0, partial: Vec::new(), lines: Vec::new(), access: Vec::new() }
    }

    /// Reads the lines that were added since the last call.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn refresh(&mut self) -> Result<()> {
        let mut file = File::open(&self.path).with_context(|| format!("cannot open {}", self.path.display()))?;
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.read_to_end(&mut self.partial)?;
        self.offset += u64::try_from(read)?;
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        let rest = self.partial.split_off(end + 1);
        let text = String::from_utf8_lossy(&std::mem::replace(&mut self.partial, rest)).into_owned();
        for line in text.lines() {
            let parsed = serde_json::from_str::<Value>(line).ok();
            self.access.extend(parsed.as_ref().and_then(Access::parse));
            self.lines.push(line.to_owned());
        }
        Ok(())
    }

    /// All lines read so far.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// All access lines read so far.
    #[must_use]
    pub fn access(&self) -> &[Access] {
        &self.access
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LINE: &str = r#"{"level":"info","time":"t","scope":"access","message":"connection complete","src.addr":"10.0.0.1:5","dst.addr":"[::ffff:10.0.0.2]:80","direction":"inbound","bytes_sent":7,"bytes_recv":"9","duration":"3ms"}"#;

    #[test]
    fn access_lines_are_read_as_they_come() -> Result<()> {
        let mut file = tempfile::NamedTempFile::new()?;
        let mut log = LogFile::new(file.path());
        let (begin, end) = LINE.split_at(20);
        write!(file, "no json\n{begin}")?;
        log.refresh()?;
        assert_eq!((log.lines().len(), log.access().len()), (1, 0));
        writeln!(file, "{end}")?;
        log.refresh()?;
        assert_eq!((log.lines().len(), log.access().len()), (2, 1));
        let access = log.access()[0].clone();
        assert_eq!(access.direction, Direction::Inbound);
        assert_eq!(access.dst, "10.0.0.2:80".parse()?);
        assert_eq!((access.sent, access.received, access.error), (7, 9, None));
        writeln!(file, "{}", LINE.replace("connection complete", "connection opened"))?;
        log.refresh()?;
        assert_eq!((log.lines().len(), log.access().len()), (3, 1));
        Ok(())
    }
}
