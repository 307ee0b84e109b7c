//! Real programs whose behaviour depends on the end of a connect: what they print and how they exit is the same before their
//! pod is enrolled and afterwards.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ztunnel_tests::apps::programs::redis_server;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::daemon::Daemon;
use ztunnel_tests::modes::{Connect, Path, Silence, unlabelled, unlimited_icmp};
use ztunnel_tests::process::{Launch, Process};
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod};
use ztunnel_tests::wait;

const PORT: u16 = 8080;
/// A port at which nobody listens.
const CLOSED: u16 = 7001;

/// Runs `act` without the mesh and with it, over both paths; what it returns must be the same, and is returned.
fn same(act: impl Fn(&Testbed) -> Result<String>) -> Result<String> {
    let mut outcomes = Vec::new();
    for path in Path::BOTH {
        let bed = unlabelled(Connect::Held, path, &[])?;
        for node in path.nodes() {
            unlimited_icmp(&bed, node)?;
        }
        let without = act(&bed).context("without the mesh")?;
        bed.enrol()?;
        let captured = |bed: &Testbed| bed.daemon("node-a")?.verdict("client-a", "captured");
        let before = captured(&bed)?;
        let with = act(&bed).with_context(|| format!("{path:?}"))?;
        let tail = || bed.daemon("node-a").map(Daemon::tail).unwrap_or_default();
        ensure!(with == without, "{path:?}: without the mesh:\n{without}\nwith it:\n{with}\n{}", tail());
        ensure!(captured(&bed)? > before, "{path:?}: no connect was captured");
        outcomes.push(with);
    }
    outcomes.dedup();
    let [outcome] =
        <[String; 1]>::try_from(outcomes).map_err(|all| anyhow::anyhow!("it depends on the path: {all:?}"))?;
    Ok(outcome)
}

/// Runs a program in a pod; returns exit status, output and errors as one text.
fn said(pod: &Pod, program: &str, args: &[&str]) -> Result<String> {
    let done = Launch::new(program).args(args).inside(&pod.netns).patience(2 * wait::PATIENCE).finish()?;
    Ok(format!("{}\n{}{}", done.status, done.stdout, done.stderr))
}

/// Reads one request with its body, and answers 200.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        if line.trim_end().is_empty() {
            break;
        }
    }
    reader.read_exact(&mut vec![0; length])?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n")
}

fn web_server(pod: &Pod, family: Family) -> Result<Server> {
    Server::start(pod, pod.at(family, PORT), |stream, _| answer(stream))
}

/// curl's arguments for the name `app` with these addresses, in this order.
fn curl(pod: &Pod, addresses: &[String], further: &[&str]) -> Result<String> {
    let resolve = format!("app:{PORT}:{}", addresses.join(","));
    let url = format!("http://app:{PORT}/");
    let args = ["-sS", "-o", "/dev/null", "--max-time", "8", "--noproxy", "*", "-w", "%{http_code} %{remote_ip}\n"];
    said(pod, "curl", &[&args[..], &["--resolve", &resolve, &url], further].concat())
}

/// The name has addresses of both families, and the server listens on one of them.
#[test]
fn curl_falls_back_to_the_other_family() -> Result<()> {
    let outcome = same(|bed| {
        let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
        let addresses = [format!("[{}]", web.v6), web.v4.to_string()];
        let mut outcome = String::new();
        for family in Family::BOTH {
            let _server = web_server(web, family)?;
            outcome += &curl(client, &addresses, &[])?;
        }
        Ok(outcome)
    })?;
    ensure!(outcome.contains("200 10.10.2.11") && outcome.contains("200 fd00:10:2::11"), "{outcome}");
    Ok(())
}

/// The name has two addresses, and the host of the first is silent.
#[test]
fn curl_goes_on_to_the_next_address() -> Result<()> {
    let outcome = same(|bed| {
        let (client, dead, web) = (bed.pod("client-a")?, bed.pod("client-b")?, bed.pod("web-b")?);
        let silence = Silence::at(dead, PORT)?;
        let mut outcome = String::new();
        for family in Family::BOTH {
            let _server = web_server(web, family)?;
            let addresses = [dead, web].map(|pod| match family {
                Family::V4 => pod.v4.to_string(),
                Family::V6 => format!("[{}]", pod.v6),
            });
            outcome += &curl(client, &addresses, &["--connect-timeout", "3"])?;
        }
        silence.end()?;
        Ok(outcome)
    })?;
    ensure!(outcome.matches("200 ").count() == 2, "{outcome}");
    Ok(())
}

/// nginx in a pod, as a proxy on loopback in front of two servers of which the first is dead.
struct Proxy(Process);

impl Proxy {
    const PORT: u16 = 9000;

    fn start(folder: &FilePath, pod: &Pod, upstreams: [SocketAddr; 2]) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let shown = folder.display();
        let [dead, alive] = upstreams;
        let settings = format!(
            "user root;\ndaemon off;\nmaster_process off;\npid {shown}/nginx.pid;\nerror_log {shown}/error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{\naccess_log off;\n\
             client_body_temp_path {shown}/body; proxy_temp_path {shown}/proxy; fastcgi_temp_path {shown}/fastcgi;\n\
             uwsgi_temp_path {shown}/uwsgi; scgi_temp_path {shown}/scgi;\n\
             upstream both {{ server {dead} max_fails=0; server {alive} max_fails=0; }}\n\
             server {{ listen 127.0.0.1:{}; location / {{ proxy_pass http://both; }} }}\n}}\n",
            Self::PORT
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, settings)?;
        let process = Launch::new("nginx")
            .args(["-p".as_ref(), folder.as_os_str(), "-e".as_ref(), folder.join("error.log").as_os_str()])
            .args(["-c".as_ref(), file.as_os_str()])
            .inside(&pod.netns)
            .log_to(&folder.join("output.log"))
            .start()?;
        let mut proxy = Self(process);
        let filter = format!("sport = :{}", Self::PORT);
        wait::until_true("nginx to listen", wait::PATIENCE, || {
            if let Some(status) = proxy.0.ended()? {
                let errors = fs::read_to_string(folder.join("error.log")).unwrap_or_default();
                anyhow::bail!("nginx ended with {status}: {errors}");
            }
            let done = Launch::new("ss").args(["-Htnl", &filter]).inside(&pod.netns).finish()?;
            Ok(!done.stdout.trim().is_empty())
        })?;
        Ok(proxy)
    }
}

/// One of two upstreams is dead: no POST fails, though nginx repeats no POST that it has sent.
#[test]
fn nginx_fails_over_and_no_post_fails() -> Result<()> {
    const POSTS: usize = 20;
    let outcome = same(|bed| {
        let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
        let mut outcome = String::new();
        for family in Family::BOTH {
            let _server = web_server(web, family)?;
            let folder = bed.topology.folder.join("proxy");
            let _proxy = Proxy::start(&folder, client, [web.at(family, CLOSED), web.at(family, PORT)])?;
            let url = format!("http://127.0.0.1:{}/", Proxy::PORT);
            let args = ["-sS", "-o", "/dev/null", "--max-time", "8", "--noproxy", "*", "-w", "%{http_code}\n"];
            for _ in 0..POSTS {
                outcome += &said(client, "curl", &[&args[..], &["--data", "order=1", &url]].concat())?;
            }
        }
        Ok(outcome)
    })?;
    let good = outcome.lines().filter(|line| *line == "200").count();
    ensure!(good == 2 * POSTS, "{} of {} POSTs failed: {outcome}", 2 * POSTS - good, 2 * POSTS);
    Ok(())
}

/// Destinations that are open, closed and unreachable, in both families.
fn destinations(bed: &Testbed) -> Result<(Vec<Server>, Vec<SocketAddr>)> {
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    client.netns.ip("route replace unreachable 10.20.1.0/24\nroute replace unreachable fd00:20:1::/64\n")?;
    let (mut servers, mut targets) = (Vec::new(), Vec::new());
    for family in Family::BOTH {
        servers.push(web_server(web, family)?);
        targets.extend([web.at(family, PORT), web.at(family, CLOSED)]);
    }
    targets.extend(["10.20.1.7:80".parse::<SocketAddr>()?, "[fd00:20:1::7]:80".parse()?]);
    Ok((servers, targets))
}

/// The checks of start-up scripts that wait for a port.
#[test]
fn a_tcp_check_of_a_shell_tells_open_from_closed() -> Result<()> {
    let outcome = same(|bed| {
        let (_servers, targets) = destinations(bed)?;
        let mut outcome = String::new();
        for target in targets {
            let check = format!("exec 3<>/dev/tcp/{}/{} && echo open", target.ip(), target.port());
            outcome += &said(bed.pod("client-a")?, "bash", &["-c", &check])?;
        }
        Ok(outcome)
    })?;
    ensure!(outcome.lines().filter(|line| *line == "open").count() == 2, "{outcome}");
    ensure!(outcome.contains("Connection refused") && outcome.contains("No route to host"), "{outcome}");
    Ok(())
}

/// Dialers of Python: one address, a list of addresses in order, and asyncio's happy eyeballs.
const PYTHON: &str = r#"
import asyncio, errno, socket, sys

targets = [(a.rpartition(":")[0].strip("[]"), int(a.rpartition(":")[2])) for a in sys.argv[1:]]
for host, port in targets:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as plain:
        plain.settimeout(4)
        code = plain.connect_ex((host, port))
        print("connect_ex", host, port, errno.errorcode.get(code, code))
    with socket.socket(family) as plain:
        plain.settimeout(4)
        try:
            plain.connect((host, port))
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
            print("read", host, port, plain.recv(15))
        except OSError as error:
            print("connect", host, port, type(error).__name__)

def info(host, port, family=0, type=0, proto=0, flags=0):
    kind = lambda h: socket.AF_INET6 if ":" in h else socket.AF_INET
    return [(kind(h), socket.SOCK_STREAM, 6, "", (h, p)) for h, p in targets[::-1]]

socket.getaddrinfo = info
with socket.create_connection(("app", 80), 4) as fallen:
    print("create_connection", fallen.getpeername()[:2])

async def eyeballs():
    async def resolve(host, port, **_):
        return info(host, port)
    asyncio.get_running_loop().getaddrinfo = resolve
    reader, writer = await asyncio.open_connection("app", 80, happy_eyeballs_delay=0.5)
    print("asyncio", writer.get_extra_info("peername")[:2])
    writer.close()

asyncio.run(eyeballs())
"#;

#[test]
fn python_dialers_fall_back() -> Result<()> {
    let outcome = same(|bed| {
        let (_servers, targets) = destinations(bed)?;
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let args: Vec<&str> = ["-c", PYTHON].into_iter().chain(targets.iter().map(String::as_str)).collect();
        said(bed.pod("client-a")?, "python3", &args)
    })?;
    let refused = outcome.lines().filter(|line| line.ends_with("ECONNREFUSED")).count();
    let unreachable = outcome.lines().filter(|line| line.ends_with("EHOSTUNREACH")).count();
    ensure!(refused == 2 && unreachable == 2, "{outcome}");
    ensure!(outcome.contains("create_connection ('fd00:10:2::11', 8080)") && outcome.contains("asyncio"), "{outcome}");
    Ok(())
}

/// The client of a Redis Cluster goes to another node when one is down; redis-cli says what it saw.
#[test]
fn redis_tells_a_node_that_is_down() -> Result<()> {
    const REDIS: u16 = 6379;
    let outcome = same(|bed| {
        let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
        let _server = redis_server(&bed.topology, web, REDIS)?;
        let mut outcome = String::new();
        for family in Family::BOTH {
            let ip = web.ip(family).to_string();
            for port in [REDIS, CLOSED] {
                outcome += &said(client, "redis-cli", &["-h", &ip, "-p", &port.to_string(), "ping"])?;
            }
        }
        Ok(outcome)
    })?;
    ensure!(outcome.matches("PONG").count() == 2, "{outcome}");
    ensure!(outcome.matches("Connection refused").count() == 2, "{outcome}");
    Ok(())
}

/// As much of a PostgreSQL server as one query needs: no TLS, no password, and every query gives one row, `up`.
fn postgres(mut stream: TcpStream) -> io::Result<()> {
    const SSL_REQUEST: u32 = 80_877_103;
    let message = |kind: u8, body: &[u8]| -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap_or(4).to_be_bytes();
        [&[kind][..], &length, body].concat()
    };
    let ready = || message(b'Z', b"I");
    loop {
        let mut head = [0; 8];
        stream.read_exact(&mut head)?;
        let [l0, l1, l2, l3, c0, c1, c2, c3] = head;
        let rest = u32::from_be_bytes([l0, l1, l2, l3]).saturating_sub(8);
        io::copy(&mut Read::by_ref(&mut stream).take(rest.into()), &mut io::sink())?;
        if u32::from_be_bytes([c0, c1, c2, c3]) != SSL_REQUEST {
            break;
        }
        stream.write_all(b"N")?;
    }
    let version = message(b'S', b"server_version\x0015.0\0");
    stream.write_all(&[message(b'R', &[0; 4]), version, ready()].concat())?;
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        let [kind, l0, l1, l2, l3] = head;
        let rest = u32::from_be_bytes([l0, l1, l2, l3]).saturating_sub(4);
        io::copy(&mut Read::by_ref(&mut stream).take(rest.into()), &mut io::sink())?;
        if kind != b'Q' {
            return Ok(());
        }
        let column =
            [&[0, 1][..], b"state\0", &[0; 6], &[0, 0, 0, 25, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]].concat();
        let row = [&[0, 1, 0, 0, 0, 2][..], b"up"].concat();
        let answer = [message(b'T', &column), message(b'D', &row), message(b'C', b"SELECT 1\0"), ready()];
        stream.write_all(&answer.concat())?;
    }
}

/// A connection string with two hosts, of which the first has no server.
#[test]
#[ignore = "needs psql: cargo xtask setup installs none"]
fn psql_goes_on_to_the_next_host() -> Result<()> {
    const POSTGRES: u16 = 5432;
    let outcome = same(|bed| {
        let (client, dead, web) = (bed.pod("client-a")?, bed.pod("client-b")?, bed.pod("web-b")?);
        let mut outcome = String::new();
        for family in Family::BOTH {
            let _server = Server::start(web, web.at(family, POSTGRES), |stream, _| postgres(stream))?;
            let hosts = format!("{},{}", dead.ip(family), web.ip(family));
            let target = format!("host={hosts} port={POSTGRES} user=u dbname=d gssencmode=disable connect_timeout=5");
            outcome += &said(client, "psql", &["-X", "-w", "-A", "-t", "-c", "select 1", &target])?;
        }
        Ok(outcome)
    })?;
    ensure!(outcome.lines().filter(|line| *line == "up").count() == 2, "{outcome}");
    Ok(())
}

const GO: &str = r#"package main

import (
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	for _, target := range os.Args[1:] {
		connection, err := net.DialTimeout("tcp", target, 2*time.Second)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println("dial tcp", target, "connected")
		connection.Close()
	}
}
"#;

#[test]
#[ignore = "needs Go, and compiles its standard library"]
fn go_dialers_tell_refused_from_unreachable_and_silent() -> Result<()> {
    const SILENT: u16 = 7002;
    let folder = tempfile::tempdir()?;
    let (source, program) = (folder.path().join("dial.go"), folder.path().join("dial"));
    fs::write(&source, GO)?;
    let go = ["/usr/local/go/bin/go", "/usr/bin/go"].into_iter().find(|path| FilePath::new(path).is_file());
    let built = Launch::new(go.context("NOT RUN: no Go in /usr/local/go/bin or /usr/bin")?)
        .args(["build".as_ref(), "-o".as_ref(), program.as_os_str(), source.as_os_str()])
        .variable("HOME", folder.path())
        .variable("GOTOOLCHAIN", "local")
        .variable("GO111MODULE", "off")
        .variable("CGO_ENABLED", "0")
        .patience(Duration::from_secs(300))
        .finish()?;
    ensure!(built.success, "go build: {}{}", built.stdout, built.stderr);
    let outcome = same(|bed| {
        let (_servers, mut targets) = destinations(bed)?;
        let web = bed.pod("web-b")?;
        let silence = Silence::at(web, SILENT)?;
        targets.extend(Family::BOTH.map(|family| web.at(family, SILENT)));
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let args: Vec<&str> = targets.iter().map(String::as_str).collect();
        let outcome = said(bed.pod("client-a")?, &program.display().to_string(), &args)?;
        silence.end()?;
        Ok(outcome)
    })?;
    for (words, count) in [("connected", 2), ("connection refused", 2), ("no route to host", 2), ("i/o timeout", 2)] {
        ensure!(outcome.matches(words).count() == count, "{words}: {outcome}");
    }
    Ok(())
}
