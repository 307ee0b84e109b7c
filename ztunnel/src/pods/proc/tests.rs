use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _},
};

use super::*;

const A: &str = "8e2f1c5a-0b7d-4c1e-9f3a-5d6e7f8091a2";
const B: &str = "11111111-2222-3333-4444-555555555555";
const HOST: &str = "host";

/// A folder like `/proc`, whose network namespaces are files with the addresses in them.
pub(in crate::pods) struct Tree(tempfile::TempDir);

impl Tree {
    pub(in crate::pods) fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for folder in ["namespaces", "proc/self", "proc/sys", "proc/7x"] {
            fs::create_dir_all(tree.0.path().join(folder)).unwrap();
        }
        tree.namespace(HOST, "192.168.0.1");
        tree
    }

    pub(in crate::pods) fn proc(&self) -> PathBuf {
        self.0.path().join("proc")
    }

    fn file(&self, namespace: &str) -> PathBuf {
        self.0.path().join("namespaces").join(namespace)
    }

    /// Opens a namespace.
    pub(in crate::pods) fn open(&self, namespace: &str) -> OpenNetns {
        let path = self.file(namespace);
        OpenNetns::new(fs::File::open(&path).unwrap(), path).unwrap()
    }

    /// Makes a namespace, or changes its addresses.
    pub(in crate::pods) fn namespace(&self, namespace: &str, addresses: &str) {
        fs::write(self.file(namespace), addresses).unwrap();
    }

    /// Starts a process, or moves it. The higher its number, the younger it is.
    pub(in crate::pods) fn process(&self, number: u32, cgroup: &str, namespace: &str) {
        let folder = self.proc().join(number.to_string());
        fs::create_dir_all(folder.join("ns")).unwrap();
        fs::write(folder.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
        let stat = format!("{number} (a) b) S 1 2 3 0 -1 4194560 5 6 7 8 9 10 11 12 20 0 1 0 {number} 13 14");
        fs::write(folder.join("stat"), stat).unwrap();
        let _none = fs::remove_file(folder.join("ns/net"));
        fs::hard_link(self.file(namespace), folder.join("ns/net")).unwrap();
    }

    pub(in crate::pods) fn of_pod(&self, number: u32, uid: &str, namespace: &str) {
        self.process(number, &format!("/kubepods/burstable/pod{uid}/0123"), namespace);
    }

    pub(in crate::pods) fn end(&self, number: u32) {
        fs::remove_dir_all(self.proc().join(number.to_string())).unwrap();
    }

    pub(in crate::pods) fn finder(&self) -> Finder<Scripted> {
        let host = fs::metadata(self.file(HOST)).unwrap();
        Finder::new(
            &self.proc(),
            Scripted { host: NetnsId { device: host.dev(), inode: host.ino() }, recorded: self.recorded() },
        )
    }

    /// The namespaces that are on record for the pod `ns/a`.
    fn recorded(&self) -> Vec<(u64, u64)> {
        let names = fs::read_to_string(self.0.path().join("recorded")).unwrap_or_default();
        let places = names.lines().map(|name| fs::metadata(self.file(name)).unwrap());
        places.map(|file| (file.dev(), file.ino())).collect()
    }

    /// The name of a namespace that was found.
    pub(in crate::pods) fn name(&self, netns: &OpenNetns) -> String {
        let names = fs::read_dir(self.0.path().join("namespaces")).unwrap();
        let found = names.map(Result::unwrap).find(|entry| {
            let file = entry.metadata().unwrap();
            (file.dev(), file.ino()) == netns.place()
        });
        found.unwrap().file_name().into_string().unwrap()
    }

    /// Searches the namespaces of pods with these addresses, and returns the results as text.
    async fn find(&self, pods: &[(&str, &[&str])]) -> Vec<String> {
        let finder = self.finder();
        let mut seen = finder.sweep(pods.iter().map(|(uid, _)| Arc::from(*uid)).collect()).await.unwrap();
        let mut all = Vec::new();
        for (uid, addresses) in pods {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            let pod = Sought { name: pod_a(), uid: Arc::from(*uid), addresses };
            all.push(match finder.choose(&pod, seen.take(uid)).await {
                Ok(found) => format!("{} by {}", self.name(&found.netns), found.process),
                Err(error) => error.to_string(),
            });
        }
        all
    }
}

/// A namespace has the addresses that its file has.
pub(in crate::pods) struct Scripted {
    host: NetnsId,
    recorded: Vec<(u64, u64)>,
}

fn pod_a() -> NamespacedName {
    NamespacedName::new("ns", "a")
}

impl Inspect for Scripted {
    async fn addresses(&self, netns: &OpenNetns) -> Result<Vec<IpAddr>, String> {
        // Like the kernel, this reads the open file, whatever has happened to its path.
        let mut bytes = [0; 256];
        let length = netns.file().read_at(&mut bytes, 0).map_err(|error| error.to_string())?;
        let text = std::str::from_utf8(&bytes[..length]).unwrap();
        Ok(text.split_whitespace().map(|address| address.parse().unwrap()).collect())
    }

    fn host(&self) -> NetnsId {
        self.host
    }

    fn is_recorded(&self, netns: &OpenNetns, pod: &NamespacedName) -> bool {
        *pod == pod_a() && self.recorded.contains(&netns.place())
    }
}

#[tokio::test]
async fn each_pod_is_found_by_its_oldest_process() {
    let tree = Tree::new();
    tree.namespace("a", "10.0.0.1 fd00::1 fe80::1");
    tree.namespace("b", "10.0.0.2");
    tree.process(1, "/init.scope", HOST);
    tree.process(2, "/system.slice/kubelet.service", HOST);
    tree.of_pod(30, A, "a");
    tree.of_pod(9, A, "a");
    tree.of_pod(31, A, "a");
    tree.of_pod(10, B, "b");
    let found = tree.find(&[(A, &["10.0.0.1", "fd00::1"]), (B, &["10.0.0.2"])]).await;
    assert_eq!(found, ["a by 9", "b by 10"]);
}

#[tokio::test]
async fn a_process_in_a_namespace_of_another_pod_or_of_the_node_does_not_count() {
    let tree = Tree::new();
    tree.namespace("a", "10.0.0.1");
    tree.namespace("b", "10.0.0.2");
    tree.of_pod(5, A, HOST);
    tree.of_pod(6, A, "b");
    tree.of_pod(7, A, "a");
    assert_eq!(tree.find(&[(A, &["10.0.0.1"])]).await, ["a by 7"]);
    tree.end(7);
    let [found] = &tree.find(&[(A, &["10.0.0.1"])]).await[..] else { panic!() };
    assert!(found.ends_with("has the pod's address 10.0.0.1; they have 10.0.0.2"), "{found}");
    tree.end(6);
    let [found] = &tree.find(&[(A, &["192.168.0.1"])]).await[..] else { panic!() };
    assert!(found.starts_with("all processes of the pod are in the network namespace of the node"), "{found}");
}

#[tokio::test]
async fn two_namespaces_with_the_pods_addresses_are_nobodys() {
    let tree = Tree::new();
    tree.namespace("a", "10.0.0.1");
    tree.namespace("fake", "10.0.0.1 10.9.9.9");
    tree.of_pod(5, A, "a");
    tree.of_pod(6, A, "fake");
    let [found] = &tree.find(&[(A, &["10.0.0.1"])]).await[..] else { panic!() };
    assert!(found.contains("several network namespaces") && found.contains("(processes 5 and 6)"), "{found}");
    // An earlier daemon has enrolled the pod with one of them.
    fs::write(tree.0.path().join("recorded"), "a").unwrap();
    assert_eq!(tree.find(&[(A, &["10.0.0.1"])]).await, ["a by 5"]);
    fs::write(tree.0.path().join("recorded"), "").unwrap();
    // One of two addresses proves nothing.
    tree.namespace("a", "10.0.0.1 fd00::1");
    assert_eq!(tree.find(&[(A, &["10.0.0.1", "fd00::1"])]).await, ["a by 5"]);
}

#[tokio::test]
async fn a_pod_that_makes_cgroups_with_names_of_others_stays_itself() {
    let tree = Tree::new();
    tree.namespace("a", "10.0.0.1");
    tree.namespace("b", "10.0.0.2");
    // The pod has made a namespace of its own with the address of the other pod.
    tree.namespace("fake", "10.0.0.2");
    tree.of_pod(5, A, "a");
    for (number, below) in [(6, format!("kubepods/pod{B}")), (7, format!("pod{B}/0123")), (8, "x/y".to_owned())] {
        tree.process(number, &format!("/kubepods/burstable/pod{A}/0123/{below}"), "fake");
    }
    let none = tree.find(&[(B, &["10.0.0.2"])]).await;
    assert!(none[0].contains("none of the 4 processes in") && none[0].contains(B), "{none:?}");
    tree.of_pod(9, B, "b");
    assert_eq!(tree.find(&[(A, &["10.0.0.1"]), (B, &["10.0.0.2"])]).await, ["a by 5", "b by 9"]);
}

#[tokio::test]
async fn a_pod_with_very_many_processes_and_namespaces_is_found_and_holds_up_nobody() {
    let tree = Tree::new();
    tree.namespace("a", "10.0.0.1");
    tree.namespace("b", "10.0.0.2");
    tree.of_pod(10, A, "a");
    for number in 0..3000 {
        let namespace = format!("n{}", number % 200);
        if number < 200 {
            tree.namespace(&namespace, "172.17.0.2");
        }
        tree.of_pod(100 + number, A, &namespace);
    }
    tree.of_pod(50_000, B, "b");
    let found = tree.find(&[(A, &["10.0.0.1"]), (B, &["10.0.0.2"])]).await;
    assert_eq!(found, ["a by 10", "b by 50000"]);
    // Without its own namespace, the message is still short.
    tree.end(10);
    let found = tree.find(&[(A, &["10.0.0.1"])]).await;
    assert!(found[0].ends_with("further network namespaces were not examined") && found[0].len() < 500, "{found:?}");
}

#[tokio::test]
async fn what_cannot_be_read_is_told_with_the_remedy() {
    let tree = Tree::new();
    let Finder { inspect, .. } = tree.finder();
    let finder = Finder { proc: tree.proc().join("missing").into(), inspect };
    let error = finder.sweep([Arc::from(A)].into()).await.unwrap_err().to_string();
    assert!(error.contains("--proc") && error.contains("missing"), "{error}");
    // Processes that end during the pass, and entries that are no processes.
    fs::create_dir(tree.proc().join("77")).unwrap();
    fs::write(tree.proc().join("78"), "").unwrap();
    tree.namespace("a", "10.0.0.1");
    tree.of_pod(79, A, "a");
    fs::remove_file(tree.proc().join("79/ns/net")).unwrap();
    tree.of_pod(80, A, "a");
    fs::write(tree.proc().join("80/cgroup"), format!("0::/kubepods/pod{A}/{}", "x".repeat(100_000))).unwrap();
    let none = tree.find(&[(A, &["10.0.0.1"])]).await;
    assert!(none[0].contains("its containers have not started yet"), "{none:?}");
    tree.of_pod(81, A, "a");
    assert_eq!(tree.find(&[(A, &["10.0.0.1"])]).await, ["a by 81"]);
}

#[tokio::test]
async fn a_witness_is_one_as_long_as_it_is_in_the_namespace() {
    let tree = Tree::new();
    tree.namespace("a", "10.0.0.1");
    tree.namespace("b", "10.0.0.2");
    let finder = tree.finder();
    let mut found = BTreeMap::new();
    for (number, uid, namespace, address) in [(5, A, "a", "10.0.0.1"), (6, B, "b", "10.0.0.2")] {
        tree.of_pod(number, uid, namespace);
        let mut seen = finder.sweep([Arc::from(uid)].into()).await.unwrap();
        let pod = Sought { name: pod_a(), uid: uid.into(), addresses: vec![address.parse().unwrap()] };
        found.insert(uid, finder.choose(&pod, seen.take(uid)).await.unwrap());
    }
    let asked = || found.clone().into_iter().collect::<Vec<_>>();
    assert!(finder.without_witness(asked()).await.is_empty());
    tree.of_pod(6, B, "a");
    assert_eq!(finder.without_witness(asked()).await, [B]);
    tree.end(5);
    assert_eq!(finder.without_witness(asked()).await, [B, A]);
}
