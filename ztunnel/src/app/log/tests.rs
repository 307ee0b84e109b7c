//! The format of lines, and a reader that stalls.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, mpsc},
};

use tracing::{Level, event, info, info_span, subscriber::with_default, warn};
use tracing_subscriber::{fmt, fmt::MakeWriter};

use super::{
    format::{Json, Text},
    queue,
};

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Output {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// The same events in both formats, without the time of each line.
fn logged(events: impl Fn()) -> (String, String) {
    let (text, json) = (Output::default(), Output::default());
    with_default(fmt().with_writer(text.clone()).fmt_fields(Text).event_format(Text).finish(), &events);
    with_default(fmt().with_writer(json.clone()).fmt_fields(Text).event_format(Json).finish(), &events);
    let (text, json) = (text.text(), json.text());
    let text = text.lines().map(|line| {
        let (time, rest) = line.split_once('\t').unwrap();
        assert!(is_time(time), "{line}");
        format!("{rest}\n")
    });
    let json = json.lines().map(|line| {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
        let (before, after) = line.split_once(r#","time":""#).unwrap();
        let (time, rest) = after.split_once('"').unwrap();
        assert!(is_time(time), "{line}");
        format!("{before}{rest}\n")
    });
    (text.collect(), json.collect())
}

/// `2026-11-20T07:26:31.281417Z`.
fn is_time(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00.000000Z"
}

#[test]
fn an_access_line_is_istios() {
    let none: Option<&str> = None;
    let address = "127.0.0.3:15008".parse::<std::net::SocketAddr>().unwrap();
    let (text, json) = logged(|| {
        event!(target: "access", parent: None, Level::ERROR,
            src.addr = %address, src.workload = "local", src.cluster = none, dst.hbone_addr = Some(tracing::field::display("[::1]:80")),
            bytes_sent = 5_u64, duration = "5ms", error = "http status: 401 Unauthorized", "connection complete");
    });
    assert_eq!(
        text,
        "error\taccess\tconnection complete\tsrc.addr=127.0.0.3:15008 src.workload=\"local\" dst.hbone_addr=[::1]:80 \
         bytes_sent=5 duration=\"5ms\" error=\"http status: 401 Unauthorized\"\n"
    );
    assert_eq!(
        json,
        r#"{"level":"error","scope":"access","message":"connection complete","src.addr":"127.0.0.3:15008","src.workload":"local","dst.hbone_addr":"[::1]:80","bytes_sent":5,"duration":"5ms","error":"http status: 401 Unauthorized"}"#
            .to_owned()
            + "\n"
    );
}

#[test]
fn targets_lose_the_programs_name_in_text_and_spans_are_named() {
    let (text, json) = logged(|| {
        info_span!("pod", name = "a b", id = 7)
            .in_scope(|| info!(target: "ztunnel::pods::manager", good = true, x = -1, "hello"));
        warn!("bare");
    });
    assert_eq!(
        text,
        "info\tpods::manager:pod{name=\"a b\" id=7}\thello\tgood=true x=-1\nwarn\tapp::log::tests\tbare\n"
    );
    assert_eq!(
        json,
        "{\"level\":\"info\",\"scope\":\"ztunnel::pods::manager\",\"message\":\"hello\",\"good\":true,\"x\":-1}\n\
         {\"level\":\"warn\",\"scope\":\"ztunnel::app::log::tests\",\"message\":\"bare\"}\n"
    );
}

#[test]
fn records_of_the_crate_log_have_their_own_target() {
    let (text, json) = logged(|| {
        event!(target: "log", Level::INFO, log.target = "ztunnel_ebpf", log.file = "a.rs", log.line = 7_u64, "connect netns=5");
    });
    assert_eq!(text, "info\tztunnel_ebpf\tconnect netns=5\n");
    assert_eq!(json, "{\"level\":\"info\",\"scope\":\"ztunnel_ebpf\",\"message\":\"connect netns=5\"}\n");
}

#[test]
fn what_a_peer_sent_can_neither_end_a_line_nor_look_like_another_field() {
    const EVIL: &str = "x\n2026\tinfo\tdst.addr=1.2.3.4:5 \"\r\u{1b}[2J\u{9b}2J\u{202e}\u{7f}'";
    let (text, json) = logged(|| {
        warn!(string = EVIL, shown = %EVIL, word = %"a=b", empty = %"", debug = ?EVIL, "message {EVIL}");
    });
    let (json_controls, text_controls) =
        (json.trim_end().contains(char::is_control), text.trim_end().replace('\t', ""));
    assert!(!json_controls && !text_controls.contains(char::is_control), "{text}{json}");
    assert_eq!((text.lines().count(), text.matches('\t').count(), json.lines().count()), (1, 3, 1), "{text}");
    const QUOTED: &str = r#""x\n2026\tinfo\tdst.addr=1.2.3.4:5 \"\r\u{1b}[2J\u{9b}2J\u{202e}\u{7f}'""#;
    assert!(text.contains(&format!(r#"string={QUOTED} shown={QUOTED} word="a=b" empty="" debug="\"x"#)), "{text}");
    let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(parsed["string"], EVIL);
    assert_eq!(parsed["message"], format!("message {EVIL}"));
}

/// An output that takes no bytes until the test releases it.
struct Stuck(mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // An error means that the test has dropped the sender: the output is released.
        let _released = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_output_that_is_stuck_costs_lines_and_holds_nobody_up() {
    const QUEUED: usize = 16;
    let (release, held) = mpsc::channel();
    let (writer, guard) = queue::start(Stuck(held), QUEUED).unwrap();
    let lost = guard.lost();
    let subscriber = fmt().with_writer(writer).event_format(Text).finish();
    // The test checks that this returns, although the output takes no bytes until then.
    with_default(subscriber, || {
        for number in 0..1000 {
            info!(number, "line");
        }
    });
    assert_eq!(lost.count(), 1000 - QUEUED as u64);
    drop(release);
    drop(guard);
}

#[test]
fn all_lines_are_written_in_order_before_the_end_and_none_after_it() {
    let output = Output::default();
    let (writer, guard) = queue::start(output.clone(), 10_000).unwrap();
    let lost = guard.lost();
    with_default(fmt().with_writer(writer).event_format(Text).finish(), || {
        for number in 0..1000 {
            info!(number, "line");
        }
        drop(guard);
        info!("after the end");
    });
    let text = output.text();
    let numbers = text.lines().map(|line| line.rsplit_once('=').unwrap().1.parse::<u32>().unwrap());
    assert!(numbers.eq(0..1000), "{text}");
    assert_eq!(lost.count(), 1);
}

#[test]
fn lines_that_the_output_refuses_are_lost() {
    struct Refusing;
    impl Write for Refusing {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (mut writer, guard) = queue::start(Refusing, 10).unwrap();
    let lost = guard.lost();
    for _ in 0..5 {
        writer.write_all(b"line\n").unwrap();
    }
    drop(guard);
    assert_eq!(lost.count(), 5);
}
