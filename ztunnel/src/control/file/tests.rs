mod budget;
mod delays;
mod kept;
mod partial;
mod sources;

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::time::timeout;

use super::content::{LARGEST_FILE, State};
use super::*;
use crate::control::source::feed;
use crate::model::local::LocalPod;
use crate::model::workload::NamespacedName;
use crate::store::local::{self, LocalReader};
use crate::store::publish::{Changes, Reader, channel};

/// Longer than any debounce and shorter than [`REREAD`]: a change that takes effect within it was signalled by inotify.
const SOON: Duration = Duration::from_secs(10);

/// A running mesh folder.
struct Mesh {
    dir: PathBuf,
    reader: Reader,
    changes: Changes,
    facts: LocalReader,
    patience: Duration,
}

impl Mesh {
    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.dir.join(name)).unwrap();
    }

    /// Waits until the mesh matches `PODS | PROBLEMS`, each problem by the beginning of its text.
    async fn until(&mut self, expected: &str) -> Arc<Snapshot> {
        let waiting = async {
            while !matches(&self.reader.load(), expected) {
                self.changes.changed().await.unwrap();
            }
        };
        let done = timeout(self.patience, waiting).await;
        let snapshot = self.reader.load();
        assert!(done.is_ok(), "not {expected:?} but {:?}, {:?}", pods(&snapshot), snapshot.problems());
        snapshot
    }
}

fn pods(snapshot: &Snapshot) -> String {
    snapshot.workloads().map(|pod| pod.name.name.to_string()).collect::<Vec<_>>().join(" ")
}

fn matches(snapshot: &Snapshot, expected: &str) -> bool {
    let (names, problems) = expected.split_once('|').unwrap();
    let problems: Vec<&str> = problems.split(';').map(str::trim).filter(|problem| !problem.is_empty()).collect();
    pods(snapshot) == names.trim()
        && problems.len() == snapshot.problems().len()
        && problems.iter().zip(snapshot.problems()).all(|(start, problem)| problem.to_string().contains(start))
}

fn pod(name: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n")
}

/// Runs a mesh folder at `dir` while `body` runs.
async fn running(dir: &Path, patience: Duration, body: impl AsyncFnOnce(&mut Mesh)) {
    running_within(FolderLimits::default(), dir, patience, body).await;
}

/// The same, with other limits.
async fn running_within(limits: FolderLimits, dir: &Path, patience: Duration, body: impl AsyncFnOnce(&mut Mesh)) {
    let (publisher, reader) = channel();
    let (local, facts) = local::channel();
    let folder = MeshFolder { limits, ..MeshFolder::open(dir, TrustDomain::default()).unwrap() };
    let mut mesh = Mesh { dir: dir.to_owned(), changes: reader.subscribe(), reader, facts, patience };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let body = async {
        body(&mut mesh).await;
        drop(stop);
    };
    let local = Local { node: "here".into(), publisher: local };
    tokio::join!(feed(folder.with_local(local), publisher, async { drop(stopped.await) }), body);
}

/// `NAME NETNS` of each pod whose local facts are known.
fn facts(facts: &LocalReader) -> String {
    let of = |(name, pod): (&NamespacedName, &LocalPod)| {
        format!("{} {}", name.name, pod.netns.as_ref().map_or("-".into(), |netns| netns.path().display().to_string()))
    };
    facts.load().map_or("unknown".to_owned(), |pods| pods.iter().map(of).collect::<Vec<_>>().join(", "))
}

#[tokio::test]
async fn with_the_mesh_come_the_local_facts_of_this_node() {
    let on = |name: &str, node: &str, netns: &str| {
        let annotations = format!("annotations: {{ambient.mesh/netns: {netns}}}");
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, {annotations}}}\nspec: {{nodeName: {node}}}\n---\n"
        )
    };
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), on("a", "here", "/n/1") + &on("b", "there", "/n/2")).unwrap();
    running(dir.path(), SOON, async |mesh| {
        assert_eq!(facts(&mesh.facts), "unknown");
        mesh.until("a b |").await;
        assert_eq!(facts(&mesh.facts), "a /n/1");
        mesh.write("a.yaml", &(on("a", "here", "relative") + &on("b", "there", "/n/2") + &on("c", "here", "/n/3")));
        mesh.until("a b c | annotation ambient.mesh/netns").await;
        assert_eq!(facts(&mesh.facts), "a -, c /n/3");
        mesh.write("a.yaml", &on("c", "here", "/n/3"));
        mesh.until("c |").await;
        assert_eq!(facts(&mesh.facts), "c /n/3");
    })
    .await;
}

#[tokio::test]
async fn changes_of_files_are_published() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
    running(dir.path(), SOON, async |mesh| {
        let first = mesh.until("a |").await;
        assert_eq!((first.version(), first.is_partial()), (1, false));
        mesh.write("b.json", r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b"}}"#);
        mesh.until("a b |").await;
        mesh.write("a.yaml", &pod("c"));
        mesh.until("b c |").await;
        fs::write(mesh.dir.join("new"), pod("d")).unwrap();
        fs::rename(mesh.dir.join("new"), mesh.dir.join("a.yaml")).unwrap();
        mesh.until("b d |").await;
        mesh.remove("b.json");
        mesh.until("d |").await;
        mesh.remove("a.yaml");
        mesh.until("|").await;
    })
    .await;
}

#[tokio::test]
async fn an_empty_folder_is_a_mesh() {
    let dir = TempDir::new().unwrap();
    running(dir.path(), SOON, async |mesh| {
        let snapshot = mesh.changes.changed().await.unwrap();
        assert_eq!((snapshot.version(), snapshot.is_partial(), snapshot.counts().workloads), (1, false, 0));
    })
    .await;
}

#[tokio::test]
async fn a_broken_file_keeps_its_last_good_content() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("never.yml"), "kind: [").unwrap();
    fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
    running(dir.path(), SOON, async |mesh| {
        let snapshot = mesh.until("a | never.yml:1: ").await;
        assert!(snapshot.is_partial() && snapshot.is_blind());
        mesh.remove("never.yml");
        let snapshot = mesh.until("a |").await;
        assert!(!snapshot.is_partial() && !snapshot.is_blind());
        mesh.write("never.yml", "kind: [");
        let snapshot = mesh.until("a | never.yml:1: ").await;
        assert!(snapshot.is_partial() && !snapshot.is_blind(), "what was good before goes on counting");
        mesh.remove("never.yml");
        mesh.until("a |").await;

        mesh.write("a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {hostNetwork: 7}\n");
        mesh.write("b.yaml", &pod("b"));
        let snapshot = mesh.until("a b | a.yaml:4: Pod default/x: spec.hostNetwork: ").await;
        assert!(!snapshot.is_partial());
        assert!(
            snapshot.problems()[0]
                .message
                .ends_with("; it may be Pod default/a, whose last valid version stays in force")
        );

        mesh.write("a.yaml", "\u{0}");
        mesh.until("a b | a.yaml:1: ").await;
        fs::write(mesh.dir.join("a.yaml"), b"# \n\xff\n").unwrap();
        mesh.until("a b | a.yaml:2: is not UTF-8 text").await;
        mesh.write("a.yaml", &pod("c"));
        mesh.until("b c |").await;
        mesh.write("a.yaml", "kind: [");
        mesh.until("b c | a.yaml:").await;
        mesh.remove("a.yaml");
        mesh.until("b |").await;
    })
    .await;
}

fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// `POLICIES | FILE in NAMESPACE, ...`.
fn policies(snapshot: &Snapshot) -> String {
    let policies = snapshot.policies();
    let known = policies.authorization().iter().map(|policy| format!("{} {}", policy.action.name(), policy.name));
    let unread = policies.unread();
    let unread = unread
        .anywhere
        .iter()
        .map(|file| format!("{file} anywhere"))
        .chain(unread.namespaces.iter().map(|(namespace, file)| format!("{file} in {namespace}")));
    format!("{} | {}", known.collect::<Vec<_>>().join(", "), unread.collect::<Vec<_>>().join(", "))
}

#[tokio::test]
async fn a_broken_policy_leaves_the_last_one_in_force() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("p.yaml"), policy("demo", "{action: DENY, rules: [{}]}")).unwrap();
    fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
    running(dir.path(), SOON, async |mesh| {
        assert_eq!(policies(&*mesh.until("a |").await), "DENY demo/p | ");
        mesh.write("p.yaml", &policy("demo", "{action: DENNY}"));
        let snapshot = mesh.until("a | p.yaml:4: AuthorizationPolicy demo/p: spec.action: unknown value").await;
        assert_eq!(policies(&snapshot), "DENY demo/p | ");
        assert!(snapshot.problems()[0].message.ends_with("; the last valid version of the object stays in force"));
        mesh.write(
            "p.yaml",
            &policy("demo", "{action: ALLOW, rules: [{from: [{source: {ipBlocks: [10.0.0.0/40]}}]}]}"),
        );
        let told = "a | p.yaml:4: AuthorizationPolicy demo/p: spec.rules[0].from[0].source.ipBlocks[0]: \"10.0.0.0/40\" is neither";
        assert_eq!(policies(&*mesh.until(told).await), "DENY demo/p | ");
        // A file that is invalid but came later cannot have denied connections before.
        mesh.write("q.yaml", &policy("istio-system", "7"));
        assert_eq!(policies(&*mesh.until(&format!("{told}; q.yaml:4: AuthorizationPolicy istio-system/p: spec: ")).await), "DENY demo/p | ");
        mesh.write("p.yaml", &policy("demo", "{action: AUDIT}"));
        assert_eq!(policies(&*mesh.until("a | q.yaml:4: AuthorizationPolicy istio-system/p: spec: ").await), "AUDIT demo/p | ");
        mesh.remove("p.yaml");
        mesh.remove("q.yaml");
        assert_eq!(policies(&*mesh.until("a |").await), " | ");
    })
    .await;
}

#[tokio::test]
async fn policies_that_were_never_read_may_keep_out_anyone_in_their_namespaces() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), policy("one", "7")).unwrap();
    fs::write(dir.path().join("b.yaml"), format!("{}---\n{}", policy("one", "{}"), policy("two", "7"))).unwrap();
    fs::write(dir.path().join("c.yaml"), "kind: [").unwrap();
    fs::write(dir.path().join("d.yaml"), policy("demo", "{}")).unwrap();
    running(dir.path(), SOON, async |mesh| {
        let snapshot = mesh.until("| a.yaml:4; b.yaml:9; c.yaml:1").await;
        assert_eq!(policies(&snapshot), "ALLOW demo/p, ALLOW one/p | a.yaml in one, b.yaml in two");
        mesh.write("c.yaml", "kind: [ # PeerAuthentication");
        let anywhere = "ALLOW demo/p, ALLOW one/p | c.yaml anywhere, a.yaml in one, b.yaml in two";
        while policies(&mesh.reader.load()) != anywhere {
            mesh.changes.changed().await.unwrap();
        }
        mesh.remove("c.yaml");
        mesh.write("a.yaml", &policy("istio-system", "7"));
        let snapshot = mesh.until("| a.yaml:4; b.yaml:9").await;
        assert_eq!(policies(&snapshot), "ALLOW demo/p, ALLOW one/p | a.yaml anywhere, b.yaml in two");
        mesh.write("a.yaml", &policy("one", "{action: DENY}"));
        let snapshot = mesh.until("| b.yaml:1: AuthorizationPolicy one/p: is already in a.yaml:1; b.yaml:9").await;
        assert_eq!(policies(&snapshot), "ALLOW demo/p, DENY one/p | b.yaml in two");
        mesh.write("b.yaml", &policy("two", "{}"));
        assert_eq!(policies(&*mesh.until("|").await), "ALLOW demo/p, DENY one/p, ALLOW two/p | ");
        mesh.write("c.yaml", &policy("istio-system", "7"));
        let snapshot = mesh.until("| c.yaml:4").await;
        assert_eq!(policies(&snapshot), "ALLOW demo/p, DENY one/p, ALLOW two/p | ");
    })
    .await;
}

#[test]
fn what_cannot_be_read_at_all_may_hold_policies_of_anyone() {
    let check = |fill: &dyn Fn(&Path), expected: &str| {
        let dir = TempDir::new().unwrap();
        fill(dir.path());
        let (snapshot, _) = read_once(dir.path(), TrustDomain::default()).unwrap();
        assert_eq!(policies(&snapshot), format!(" | {expected}"));
        // If the kind is known to be a policy, the object cannot be a pod.
        let hides_pods = snapshot.problems().iter().all(|problem| problem.object.is_none());
        assert_eq!((snapshot.is_partial(), snapshot.is_blind()), (hides_pods, hides_pods));
    };
    check(&|dir| fs::create_dir(dir.join("a.yaml")).unwrap(), "a.yaml anywhere");
    check(&|dir| symlink("nowhere", dir.join("a.yaml")).unwrap(), "a.yaml anywhere");
    check(&|dir| fs::write(dir.join("a.yaml"), b"\xff").unwrap(), "a.yaml anywhere");
    let large = |dir: &Path| fs::File::create(dir.join("a.yaml")).unwrap().set_len(LARGEST_FILE + 1).unwrap();
    check(&large, "a.yaml anywhere");
    check(&|dir| fs::write(dir.join("a.yaml"), "kind: [").unwrap(), "");
    // The settings name another root namespace than the default one.
    let settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'rootNamespace: \
                    root'}\n";
    let other_root = |namespace: &'static str| {
        move |dir: &Path| {
            fs::write(dir.join("a.yaml"), policy(namespace, "7")).unwrap();
            fs::write(dir.join("mesh.yaml"), settings).unwrap();
        }
    };
    check(&other_root("root"), "a.yaml anywhere");
    check(&other_root("istio-system"), "a.yaml in istio-system");
}

#[test]
fn a_folder_is_read_once_as_a_daemon_does_at_its_start() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), format!("{}---\n{}", pod("a"), policy("demo", "{action: DENY}"))).unwrap();
    let domain: TrustDomain = "example.org".parse().unwrap();
    let (snapshot, _) = read_once(dir.path(), domain.clone()).unwrap();
    assert_eq!((snapshot.version(), snapshot.is_partial(), snapshot.is_blind()), (1, false, false));
    assert_eq!((pods(&snapshot).as_str(), policies(&snapshot).as_str()), ("a", "DENY demo/p | "));
    assert!(snapshot.workloads().all(|pod| pod.identity.trust_domain == domain));
    fs::write(dir.path().join("b.yaml"), policy("other", "7")).unwrap();
    let (snapshot, _) = read_once(dir.path(), domain.clone()).unwrap();
    assert_eq!((snapshot.version(), snapshot.is_partial(), snapshot.is_blind()), (1, false, false));
    assert_eq!(policies(&snapshot), "DENY demo/p | b.yaml in other");
    assert!(matches(&snapshot, "a | b.yaml:4: AuthorizationPolicy other/p: spec: "));
    let error = read_once(&dir.path().join("none"), domain).unwrap_err();
    assert!(matches!(error, OpenFolderError::Unreadable { .. }), "{error}");
}

#[tokio::test]
async fn broken_mesh_settings_leave_the_last_ones_in_force() {
    let dir = TempDir::new().unwrap();
    let settings = |mode: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: \
             'outboundTrafficPolicy: {{mode: {mode}}}'}}\n"
        )
    };
    fs::write(dir.path().join("mesh.yaml"), settings("REGISTRY_ONLY")).unwrap();
    fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
    running(dir.path(), SOON, async |mesh| {
        assert!(mesh.until("a |").await.is_registry_only());
        mesh.write("mesh.yaml", &settings("REGISTRYONLY"));
        let told = "a | mesh.yaml:4: ConfigMap istio-system/istio: data.mesh.outboundTrafficPolicy.mode: unknown value";
        assert!(mesh.until(told).await.is_registry_only());
        mesh.write("mesh.yaml", &settings("ALLOW_ANY"));
        assert!(!mesh.until("a |").await.is_registry_only());
        mesh.write("mesh.yaml", &settings("REGISTRY_ONLY"));
        mesh.write("b.yaml", &pod("b"));
        assert!(mesh.until("a b |").await.is_registry_only());
        mesh.remove("mesh.yaml");
        mesh.write("c.yaml", &pod("c"));
        assert!(!mesh.until("a b c |").await.is_registry_only());
    })
    .await;
}

#[tokio::test]
async fn what_is_no_manifest_does_not_block() {
    let dir = TempDir::new().unwrap();
    nix::unistd::mkfifo(&dir.path().join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(dir.path().join("folder.yaml")).unwrap();
    fs::write(dir.path().join(".hidden.yaml"), "kind: [").unwrap();
    fs::write(dir.path().join("notes.txt"), "kind: [").unwrap();
    fs::File::create(dir.path().join("large.yaml")).unwrap().set_len(LARGEST_FILE + 1).unwrap();
    symlink("nowhere", dir.path().join("link.yaml")).unwrap();
    fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
    let problems = "folder.yaml: is not a regular file; large.yaml: is larger than 256 MiB; link.yaml: cannot be opened; \
                    pipe.yaml: is not a regular file";
    running(dir.path(), SOON, async |mesh| {
        mesh.until(&format!("a | {problems}")).await;
        mesh.write("b.yaml", &pod("b"));
        mesh.until(&format!("a b | {problems}")).await;
    })
    .await;
}

#[tokio::test]
async fn what_says_the_same_is_not_published_again() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
    running(dir.path(), SOON, async |mesh| {
        assert_eq!(mesh.until("a |").await.version(), 1);
        mesh.write("a.yaml", &format!("# the same\n{}", pod("a")));
        mesh.write("c.yaml", "# nothing\n");
        // Long enough for a reading of the two files, if they had been noticed.
        assert!(timeout(LONGEST_WAIT * 2, mesh.changes.changed()).await.is_err());
        mesh.write("b.yaml", &pod("b"));
        assert_eq!(mesh.until("a b |").await.version(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_folder_that_goes_and_comes_back_is_followed() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("deep/mesh");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("a.yaml"), pod("a")).unwrap();
    running(&dir, SOON, async |mesh| {
        mesh.until("a |").await;
        // The folder is removed with its files: the mesh that was in force stays in force.
        fs::rename(&dir, parent.path().join("away")).unwrap();
        mesh.until("a | cannot read the mesh folder").await;
        fs::remove_dir(parent.path().join("deep")).unwrap();
        fs::create_dir_all(&dir).unwrap();
        mesh.until("|").await;
        mesh.write("b.yaml", &pod("b"));
        mesh.until("b |").await;

        // The folder is replaced by another in one step.
        fs::create_dir(parent.path().join("next")).unwrap();
        fs::write(parent.path().join("next/c.yaml"), pod("c")).unwrap();
        mesh.remove("b.yaml");
        fs::rename(parent.path().join("next"), &dir).unwrap();
        mesh.until("c |").await;
        mesh.write("d.yaml", &pod("d"));
        mesh.until("c d |").await;

        // The folder is removed and created again at once, which may give the same inode number.
        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        mesh.until("|").await;
        mesh.write("e.yaml", &pod("e"));
        mesh.until("e |").await;
    })
    .await;
}

#[tokio::test]
async fn mounted_config_maps_are_followed() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("mesh");
    let version = |number: u32, name: &str| {
        fs::create_dir_all(dir.join(format!("..{number}"))).unwrap();
        fs::write(dir.join(format!("..{number}/mesh.yaml")), pod(name)).unwrap();
        symlink(format!("..{number}"), dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    };
    version(1, "a");
    symlink("..data/mesh.yaml", dir.join("mesh.yaml")).unwrap();
    running(&dir, SOON, async |mesh| {
        mesh.until("a |").await;
        version(2, "b");
        fs::remove_dir_all(dir.join("..1")).unwrap();
        mesh.until("b |").await;
        version(3, "c");
        mesh.until("c |").await;
    })
    .await;
}

#[tokio::test]
async fn a_folder_behind_a_link_is_followed_to_where_the_link_turns() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("mesh");
    for name in ["a", "b"] {
        fs::create_dir(parent.path().join(name)).unwrap();
        fs::write(parent.path().join(name).join("pod.yaml"), pod(name)).unwrap();
    }
    symlink("a", &dir).unwrap();
    running(&dir, SOON, async |mesh| {
        mesh.until("a |").await;
        symlink("b", parent.path().join("next")).unwrap();
        fs::rename(parent.path().join("next"), &dir).unwrap();
        mesh.until("b |").await;
        mesh.write("c.yaml", &pod("c"));
        mesh.until("b c |").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_inotify_does_not_tell_is_found_later() {
    let dir = TempDir::new().unwrap();
    let elsewhere = TempDir::new().unwrap();
    fs::write(elsewhere.path().join("pod"), pod("a")).unwrap();
    symlink(elsewhere.path().join("pod"), dir.path().join("a.yaml")).unwrap();
    running(dir.path(), REREAD * 3, async |mesh| {
        mesh.until("a |").await;
        fs::write(elsewhere.path().join("pod"), pod("b")).unwrap();
        mesh.until("b |").await;
    })
    .await;
}

#[test]
fn only_folders_can_be_opened() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(MeshFolder::open(&file, TrustDomain::default()), Err(OpenFolderError::NotADirectory { .. })));
    let error = MeshFolder::open(&dir.path().join("none"), TrustDomain::default()).unwrap_err();
    assert!(error.to_string().ends_with("none: create it or correct --mesh"), "{error}");
}

/// Anyone who may write a file can set its time of modification, but not the time at which its state changed.
#[test]
fn a_file_that_was_written_looks_different_whatever_its_times_are_set_to() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, pod("a")).unwrap();
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let later = || SystemTime::now() + Duration::from_secs(60);
    assert_eq!(State::settled(&path, SystemTime::now()), None, "it may be written again within the same tick");
    let before = State::settled(&path, later());
    assert!(before.is_some() && before == State::settled(&path, later()));
    let waiting = std::time::Instant::now();
    while State::settled(&path, later()) == before {
        assert!(waiting.elapsed() < SOON, "no tick of the file system's clock");
        fs::write(&path, pod("b")).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    }
    assert_eq!(State::settled(&dir.path().join("none.yaml"), later()), None);
}

/// Then nothing is known of the mesh, as if the folder could not be read.
#[tokio::test]
async fn be_ready_on_a_folder_of_which_every_object_is_rejected() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), "{").unwrap();
    fs::write(dir.path().join("b.yaml"), pod("Not_A_Name")).unwrap();
    running(dir.path(), SOON, async |mesh| {
        let snapshot = mesh.until("| a.yaml; b.yaml").await;
        assert_eq!((snapshot.version(), facts(&mesh.facts).as_str()), (0, "unknown"));
        assert!(snapshot.is_partial() && snapshot.is_blind());
        mesh.write("c.yaml", &pod("c"));
        let snapshot = mesh.until("c | a.yaml; b.yaml").await;
        assert!(snapshot.version() > 0);
        // A folder that was read once counts as read, whatever happens to it.
        mesh.remove("c.yaml");
        let snapshot = mesh.until("| a.yaml; b.yaml").await;
        assert!(snapshot.version() > 1);
    })
    .await;
}
