use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;
use tokio::time::timeout;
use tracing::Span;

use super::{NodeAccounts, ReviewedNodes, parse};
use crate::{
    control::kubernetes::script::{Answer, Script},
    lifecycle::tasks::{TaskCount, TaskSet},
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
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const HOSTILE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 66));

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
    let caller = nodes.authenticate(token.as_bytes(), NODE).await.unwrap();
    assert_eq!((&*caller.node, nodes.len(), nodes.knows(&caller)), ("n1", 1, true));
    assert_eq!(nodes.authenticate(token.as_bytes(), NODE).await, Ok(caller.clone()));
    assert_eq!(script.asked().len(), 1, "the answer is kept");
    let mut changes = nodes.changes();
    // A new pod with the same name.
    publisher.apply(pod("another", "n1"));
    timeout(Duration::from_secs(30), changes.changed()).await.unwrap().unwrap();
    assert!(!nodes.knows(&caller) && nodes.is_empty());
    let refused = nodes.authenticate(token.as_bytes(), NODE).await.unwrap_err();
    assert_eq!(refused, Stranger::Refused("the pod of the token is gone".to_owned()));
    publisher.apply(pod("u", "n2"));
    let refused = nodes.authenticate(good_token("b").as_bytes(), NODE).await.unwrap_err();
    assert_eq!(refused, Stranger::Refused("the pod of the token is on another node".to_owned()));
}

#[tokio::test]
async fn what_is_refused_is_not_asked_for_again_at_once() {
    let script = Script::start(|_| answer("other")).await;
    let (publisher, mesh) = channel();
    publisher.apply(pod("u", "n1"));
    let nodes = nodes(&script, mesh);
    for _ in 0..3 {
        let Err(Stranger::Refused(why)) = nodes.authenticate(good_token("a").as_bytes(), NODE).await else { panic!() };
        assert!(
            why.contains(
                "service account istio-system/other, and the node daemon has service account istio-system/ztunnel"
            ),
            "{why}"
        );
    }
    // A new second may have begun between two tokens.
    assert!(script.asked().len() <= 2, "{:?}", script.asked());
    assert_eq!(nodes.len(), 0);
    let Err(Stranger::Refused(_)) = nodes.authenticate(b"nonsense", NODE).await else { panic!() };
    assert!(script.asked().len() <= 2, "nonsense is not sent to the API");
}

#[tokio::test]
async fn an_unknown_token_waits_while_the_api_is_away() {
    let script = Script::start(|_| Answer::Close).await;
    let (_publisher, mesh) = channel();
    let nodes = nodes(&script, mesh);
    let stranger = nodes.authenticate(good_token("a").as_bytes(), NODE).await.unwrap_err();
    assert_eq!(stranger, Stranger::Unavailable("the token cannot be reviewed now: try again".to_owned()));
    assert_eq!(nodes.len(), 0);
}

/// A script that accepts the good token. `other` answers all other tokens.
async fn knowing(good: &str, other: impl Fn() -> Answer + Send + Sync + 'static) -> Script {
    let good = good.to_owned();
    Script::start(move |asked| if asked.body.contains(&good) { answer("ztunnel") } else { other() }).await
}

/// The API server is slow to answer about forged tokens. A new node does not wait for them.
#[tokio::test]
async fn forged_tokens_delay_no_node_at_another_address() {
    let good = good_token("good");
    let held = Arc::new(std::sync::Mutex::new(Vec::new()));
    let script = knowing(&good, {
        let held = Arc::clone(&held);
        move || {
            let (sender, events) = tokio::sync::mpsc::unbounded_channel();
            held.lock().unwrap().push(sender);
            Answer::Stream(events)
        }
    })
    .await;
    let (publisher, mesh) = channel();
    publisher.apply(pod("u", "n1"));
    let nodes = nodes(&script, mesh);
    let mut hostile = TaskSet::new(TaskCount::default());
    for number in 0..300 {
        let nodes = nodes.clone();
        hostile.spawn(Span::none(), async move {
            let forged = good_token(&format!("forged-{number}"));
            let stranger = nodes.authenticate(forged.as_bytes(), HOSTILE).await.unwrap_err();
            assert!(matches!(stranger, Stranger::Unavailable(_)), "{stranger:?}");
        });
    }
    while script.asked().len() < 4 {
        tokio::task::yield_now().await;
    }
    let caller = timeout(Duration::from_secs(4), nodes.authenticate(good.as_bytes(), NODE)).await.unwrap().unwrap();
    assert_eq!(&*caller.node, "n1");
    assert_eq!(script.asked().len(), 5, "four forged tokens at once, and the good one");
}

/// The API server is not asked about each forged token either.
#[tokio::test]
async fn an_address_of_forged_tokens_is_refused_without_asking() {
    let good = good_token("good");
    let script = knowing(&good, || Answer::Whole(201, json!({"status": {"authenticated": false}}))).await;
    let (publisher, mesh) = channel();
    publisher.apply(pod("u", "n1"));
    let nodes = nodes(&script, mesh);
    let mut last = None;
    for number in 0..100 {
        let forged = good_token(&format!("forged-{number}"));
        last = nodes.authenticate(forged.as_bytes(), HOSTILE).await.err();
    }
    let Some(Stranger::Unavailable(why)) = last else { panic!("{last:?}") };
    assert!(why.starts_with("too many tokens from 10.0.0.66 were refused: try again in"), "{why}");
    // One more refusal is allowed every ten seconds, and the test may be slow.
    assert!((8..12).contains(&script.asked().len()), "{}", script.asked().len());
    nodes.authenticate(good.as_bytes(), NODE).await.unwrap();
    // A known token is accepted from any address.
    nodes.authenticate(good.as_bytes(), HOSTILE).await.unwrap();
}
