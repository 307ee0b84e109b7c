use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;
use tokio::time::timeout;

use super::{NodeAccounts, ReviewedNodes, parse};
use crate::{
    control::kubernetes::script::{Answer, Script},
    lifecycle::tasks::TaskCount,
    model::{
        identity::{SpiffeId, TrustDomain},
        workload::{NamespacedName, Workload},
    },
    plane::caller::Stranger,
    store::{
        change::{Batch, Change},
        publish::{Reader, channel},
    },
};

fn token(claims: &str) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.signature", part("{\"alg\":\"RS256\"}"), part(claims))
}

#[test]
fn only_what_may_be_a_token_is_sent_to_the_api() {
    let soon = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 60;
    let good = token(&format!("{{\"exp\":{soon},\"iss\":\"x\"}}"));
    let (text, expires) = parse(good.as_bytes()).unwrap();
    assert_eq!((&*text, expires), (good.as_str(), UNIX_EPOCH + Duration::from_secs(soon)));
    let past = token("{\"exp\":1}");
    let long = "a".repeat(9 << 10);
    let huge = token(&format!("{{\"exp\":{}}}", u64::MAX));
    for wrong in ["", "a.b", "a.b.c.d", &token("{}"), &token("[1]"), "a.\u{fffd}.c", &past, &long, &huge] {
        assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
    }
    assert!(parse(&[0xff, b'.', 0xff, b'.']).is_err());
}

const POD: &str = "zt-1";

fn good_token(id: &str) -> String {
    let soon = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
    token(&format!("{{\"exp\":{soon},\"jti\":\"{id}\"}}"))
}

fn answer(account: &str) -> Answer {
    let extra = json!({
        "authentication.kubernetes.io/pod-name": [POD],
        "authentication.kubernetes.io/pod-uid": ["u"],
        "authentication.kubernetes.io/node-name": ["n1"],
    });
    let user = json!({"username": format!("system:serviceaccount:istio-system:{account}"), "extra": extra});
    Answer::Whole(201, json!({"status": {"authenticated": true, "audiences": ["ztunnel"], "user": user}}))
}

fn pod(uid: &str, node: &str) -> Batch {
    let name = NamespacedName::new("istio-system", POD);
    let identity = SpiffeId::new(TrustDomain::default(), "istio-system", "ztunnel");
    let pod = Workload { uid: uid.into(), node: Some(node.into()), ..Workload::new(name, identity) };
    Batch::of(vec![Change::Workload(Arc::new(pod))])
}

fn nodes(script: &Script, mesh: Reader) -> ReviewedNodes {
    let account = NamespacedName::new("istio-system", "ztunnel");
    let accounts = NodeAccounts { account, audiences: vec!["ztunnel".to_owned()] };
    ReviewedNodes::new(script.cluster.clone(), accounts, mesh, TaskCount::default())
}

#[tokio::test]
async fn an_answer_is_kept_and_ends_with_the_pod() {
    let script = Script::start(|_| answer("ztunnel")).await;
    let (publisher, mesh) = channel();
    publisher.apply(pod("u", "n1"));
    let nodes = nodes(&script, mesh);
    let token = good_token("a");
    let caller = nodes.authenticate(token.as_bytes()).await.unwrap();
    assert_eq!((&*caller.node, nodes.len(), nodes.knows(&caller)), ("n1", 1, true));
    assert_eq!(nodes.authenticate(token.as_bytes()).await, Ok(caller.clone()));
    assert_eq!(script.asked().len(), 1, "the answer is kept");
    let mut changes = nodes.changes();
    // Another pod of the same name.
    publisher.apply(pod("another", "n1"));
    timeout(Duration::from_secs(30), changes.changed()).await.unwrap().unwrap();
    assert!(!nodes.knows(&caller) && nodes.is_empty());
    let refused = nodes.authenticate(token.as_bytes()).await.unwrap_err();
    assert_eq!(refused, Stranger::Refused("the pod of the token is gone".to_owned()));
    publisher.apply(pod("u", "n2"));
    let refused = nodes.authenticate(good_token("b").as_bytes()).await.unwrap_err();
    assert_eq!(refused, Stranger::Refused("the pod of the token is on another node".to_owned()));
}

#[tokio::test]
async fn what_is_refused_is_not_asked_for_again_at_once() {
    let script = Script::start(|_| answer("other")).await;
    let (publisher, mesh) = channel();
    publisher.apply(pod("u", "n1"));
    let nodes = nodes(&script, mesh);
    for _ in 0..3 {
        let Err(Stranger::Refused(why)) = nodes.authenticate(good_token("a").as_bytes()).await else { panic!() };
        assert!(
            why.contains("of service account istio-system/other, not of the node daemon's istio-system/ztunnel"),
            "{why}"
        );
    }
    // The second of the clock may have changed between two tokens.
    assert!(script.asked().len() <= 2, "{:?}", script.asked());
    assert_eq!(nodes.len(), 0);
    let Err(Stranger::Refused(_)) = nodes.authenticate(b"nonsense").await else { panic!() };
    assert!(script.asked().len() <= 2, "nonsense is not sent to the API");
}

#[tokio::test]
async fn an_unknown_token_waits_while_the_api_is_away() {
    let script = Script::start(|_| Answer::Close).await;
    let (_publisher, mesh) = channel();
    let nodes = nodes(&script, mesh);
    let stranger = nodes.authenticate(good_token("a").as_bytes()).await.unwrap_err();
    assert_eq!(stranger, Stranger::Unavailable("the token cannot be reviewed now: try again".to_owned()));
    assert_eq!(nodes.len(), 0);
}
