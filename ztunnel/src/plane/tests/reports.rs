//! Reports of pods that nodes refuse, over the wire.

use super::*;
use crate::{
    control::kubernetes::script::{Answer, Script},
    istio::report::{PodReport, PodReportResponse, REPORT_PODS, ReportedPod, ReportedState},
};

fn report(pods: &[&str], reason: &str) -> PodReport {
    let pod = |name: &&str| ReportedPod {
        namespace: "demo".to_owned(),
        name: (*name).to_owned(),
        uid: String::new(),
        state: ReportedState::Refused.into(),
        reason: reason.to_owned(),
    };
    PodReport { pods: pods.iter().map(pod).collect() }
}

impl Plane {
    async fn report(&self, token: Option<&str>, report: &PodReport) -> Result<PodReportResponse, Ended> {
        let mut call = self.connect().await.call(REPORT_PODS, token).await;
        call.send(report);
        let response = call.next().await?;
        assert_eq!(call.next::<PodReportResponse>().await.unwrap_err(), (0, String::new()));
        Ok(response)
    }
}

#[tokio::test]
async fn a_control_plane_without_an_api_server_takes_no_reports() {
    let plane = Plane::start(LIMITS).await;
    let (code, message) = plane.report(Some(TOKEN_A), &report(&["a"], "why")).await.unwrap_err();
    assert!(code == 12 && message.contains("does not use the Kubernetes API"), "{code} {message}");
}

#[tokio::test]
async fn reports_are_of_the_callers_own_pods_and_bounded() {
    let script = Script::start(|asked| {
        let event: serde_json::Value = serde_json::from_str(&asked.body).unwrap();
        Answer::Whole(201, event)
    })
    .await;
    let signing = SigningLimits { burst: 100, every: Duration::from_secs(3600), at_once: 8 };
    let mut plane = Plane::start_on(LIMITS, signing, Some(script.cluster.clone())).await;
    let with_uid = |text: String, uid: &str| text.replace("metadata: {", &format!("metadata: {{uid: {uid}, "));
    let (a, b) = (pod("a", "node-a", "10.0.0.1"), pod("b", "node-b", "10.0.0.2"));
    plane.says("a", &[&with_uid(a, "u-a"), &with_uid(b, "u-b")]);
    let mut stream = plane.stream(TOKEN_A).await;
    stream.subscribe(ADDRESS);
    stream.response(ADDRESS).await;

    assert_eq!(plane.report(None, &report(&["a"], "why")).await.unwrap_err().0, 16);
    let said = plane.report(Some(TOKEN_A), &report(&["a", "b"], "why")).await.unwrap();
    assert_eq!(said, PodReportResponse { taken: 1, ignored: 1 });
    // A message that is longer than a report may be, and a message that cannot be decoded.
    let long = report(&["a"; 64], &"x".repeat(8 << 10));
    assert_eq!(plane.report(Some(TOKEN_A), &long).await.unwrap_err().0, 8);
    let mut call = plane.connect().await.call(REPORT_PODS, Some(TOKEN_A)).await;
    call.send_raw(0, b"\xff\xff\xff");
    assert_eq!(call.end().await.0, 3);
    // Names that no pod can have.
    for odd in [report(&["../b"], ""), report(&[""], "")] {
        assert_eq!(plane.report(Some(TOKEN_A), &odd).await.unwrap_err().0, 3);
    }
    // The node reports more often than a node may. The other node still can report.
    let mut code = 0;
    for _ in 0..10 {
        code = plane.report(Some(TOKEN_A), &report(&["a"], "why")).await.err().map_or(0, |(code, _)| code);
    }
    assert_eq!(code, 8);
    assert_eq!(plane.report(Some(TOKEN_B), &report(&["b"], "why")).await.unwrap().taken, 1);
    assert!(plane.count("ztunnel_pod_reports_total{result=\"quota\"}") >= 1);
    let written = async {
        while plane.count("ztunnel_pod_events_total{result=\"created\"}") < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), written).await.unwrap();
    let events: Vec<String> = script.asked().into_iter().map(|asked| asked.body).collect();
    assert!(events.iter().any(|event| event.contains("\"uid\":\"u-a\"") && event.contains("node-a")), "{events:?}");
    assert!(events.iter().all(|event| !(event.contains("u-b") && event.contains("node-a"))), "{events:?}");
}
