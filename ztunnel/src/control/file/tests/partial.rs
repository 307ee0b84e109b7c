//! Files that can be read only in part: that part counts, and so does the last valid version of the rest.

use super::*;
use crate::control::file::folder::{Folder, Reading};

/// A folder with one file, as a running daemon sees it.
struct Watched {
    dir: TempDir,
    folder: Folder,
    joiner: Joiner,
}

impl Watched {
    fn new(kept: Option<&Path>) -> Self {
        let dir = TempDir::new().unwrap();
        let folder = Folder::new(dir.path().to_owned(), kept.map(Path::to_owned), FolderLimits::default());
        Self { dir, folder, joiner: Joiner::new(TrustDomain::default(), None) }
    }

    /// Starts a new daemon on the same folder.
    fn restart(&mut self, kept: &Path) {
        self.folder = Folder::new(self.dir.path().to_owned(), Some(kept.to_owned()), FolderLimits::default());
        self.joiner = Joiner::new(TrustDomain::default(), None);
    }

    /// Writes the file and reads it. Returns the pods and policies in force, and the ends of the reported problems.
    fn says(&mut self, text: &str) -> (String, Vec<String>) {
        fs::write(self.dir.path().join("f.yaml"), text).unwrap();
        self.folder.read(&mut self.joiner, Reading::Thorough);
        self.joiner.take();
        let mut objects: Vec<String> = self
            .joiner
            .origins()
            .into_iter()
            .map(|((kind, name), origin)| format!("{kind} {} {}", name.name, origin.line().unwrap_or_default()))
            .collect();
        objects.sort();
        let problems = self.folder.problems().map(|problem| {
            let (_, consequence) = problem.message.rsplit_once("; ").unwrap();
            format!("{} {consequence}", problem.origin)
        });
        (objects.join(", "), problems.collect())
    }

    fn check(&mut self, text: &str, expected: &str, told: &[&str]) {
        let (objects, problems) = self.says(text);
        assert_eq!(objects, expected, "{text}\n{problems:?}");
        assert_eq!(problems, told, "{text}");
    }

    /// Whether unknown addresses may belong to pods, and which policies may be missing.
    fn unread(&self) -> (bool, String) {
        let unread = self.folder.unread("istio-system");
        let anywhere = unread.anywhere.map(|_| "anywhere".to_owned());
        let all = anywhere.into_iter().chain(unread.namespaces.keys().map(ToString::to_string));
        (self.folder.is_partial(), all.collect::<Vec<_>>().join(" "))
    }
}

fn doc(text: &str) -> String {
    format!("{text}---\n")
}

const STAYS: &str = "the last valid version of the object stays in force";

#[test]
fn the_good_documents_count_and_the_bad_ones_keep_their_last_valid_state() {
    let mut file = Watched::new(None);
    let deny = policy("demo", "{action: DENY, rules: [{}]}");
    let bad = policy("demo", "{action: DENY, rules: [{fro: []}]}");
    let (a, b) = (doc(&pod("a")), doc(&pod("b")));
    file.check(&(a.clone() + &doc(&deny) + &b), "AuthorizationPolicy p 5, Pod a 1, Pod b 10", &[]);
    assert_eq!(file.unread(), (false, String::new()));
    // The policy stays, and the pods change.
    let at_the_fault = "f.yaml:8 the last valid version of the object stays in force";
    file.check(
        &(a.clone() + &doc(&bad) + &doc(&pod("c"))),
        "AuthorizationPolicy p 8, Pod a 1, Pod c 10",
        &[at_the_fault],
    );
    assert_eq!(file.unread(), (false, String::new()));
    // Several faults, each of which keeps its own object.
    let two =
        doc("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {hostNetwork: 7}\n") + &doc(&bad) + &doc(&pod("c"));
    file.check(
        &two,
        "AuthorizationPolicy p 9, Pod a 4, Pod c 11",
        &[&format!("f.yaml:4 {STAYS}"), &format!("f.yaml:9 {STAYS}")],
    );
    // A part that can't be read at all may be any of the missing objects.
    let any = "f.yaml:5 it may be AuthorizationPolicy demo/p or one of 1 more of this file, whose last valid versions stay in force";
    file.check(&(a.clone() + "kind: [\n"), "AuthorizationPolicy p 5, Pod a 1, Pod c 5", &[any]);
    // An object that is removed is not taken for one that is broken.
    file.check(&a, "Pod a 1", &[]);
    file.check(&(doc(&deny) + &a), "AuthorizationPolicy p 1, Pod a 6", &[]);
    file.check(&doc(&bad), "AuthorizationPolicy p 4", &[&format!("f.yaml:4 {STAYS}")]);
    // A template has no objects and removes none.
    let template = deny.replace("name: p", "name: {{ .Values.name }}");
    file.check(
        &template,
        "AuthorizationPolicy p 3",
        &["f.yaml:3 it may be AuthorizationPolicy demo/p, whose last valid version stays in force"],
    );
    // An object that is renamed and broken at the same time.
    let renamed = bad.replace("name: p", "name: q");
    file.check(
        &renamed,
        "AuthorizationPolicy p 4",
        &["f.yaml:4 it may be AuthorizationPolicy demo/p, whose last valid version stays in force"],
    );
    // A new object that is broken from the start was never in force.
    file.check(&deny, "AuthorizationPolicy p 1", &[]);
    file.check(&(doc(&deny) + &renamed), "AuthorizationPolicy p 1", &["f.yaml:9 it is ignored until it is corrected"]);
    assert_eq!(file.unread(), (false, String::new()));
}

#[test]
fn only_what_a_bad_document_names_is_closed_at_the_start() {
    let bad_pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: 7\n";
    let closed = "it is ignored until it is corrected; unless the whole folder was valid before it came";
    let table = [
        (policy("demo", "7"), (false, "demo"), "pods of namespace demo accept only health probes until then"),
        (
            policy("istio-system", "7"),
            (false, "anywhere"),
            "pods of namespace istio-system accept only health probes until then",
        ),
        (bad_pod.to_owned(), (true, ""), "connections to unknown addresses are refused until then"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {hostNetwork: sure}\nstatus: {podIP: 10.0.0.9}\n"
                .to_owned(),
            (true, ""),
            "connections to 10.0.0.9 are refused until then",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {clusterIP: 10.96.0.1, ports: [{port: '80'}]}\n"
                .to_owned(),
            (true, ""),
            "connections to 10.96.0.1 are refused until then",
        ),
        ("kind: [\n".to_owned(), (true, ""), "connections to unknown addresses are refused until then"),
        (
            "kind: [ # AuthorizationPolicy\n".to_owned(),
            (true, "anywhere"),
            "connections to unknown addresses are refused and all pods accept only health probes until then",
        ),
        ("apiVersion: v1\nkind: Node\nmetadata: {name: n, labels: 7}\n".to_owned(), (false, ""), ""),
        (policy("demo", "{{ toYaml .Values.spec }}"), (false, ""), ""),
        ("replicas: 2\nkind: Values\n".to_owned(), (false, ""), ""),
    ];
    for (text, unread, consequence) in table {
        let mut file = Watched::new(None);
        let (objects, problems) = file.says(&(doc(&pod("a")) + &text));
        assert_eq!(objects, "Pod a 1", "{text}");
        let (partial, policies) = unread;
        assert_eq!(file.unread(), (partial, policies.to_owned()), "{text}");
        if consequence.is_empty() {
            assert!(
                problems.iter().all(|told| !told.contains("until then") || told.ends_with("until then it is ignored")),
                "{problems:?}"
            );
        } else {
            assert!(problems.len() == 1 && problems[0].ends_with(consequence), "{problems:?}");
            let whole = file.folder.problems().next().unwrap().to_string();
            assert!(whole.contains(closed), "{whole}");
        }
        // Once the file is repaired nothing is missing, and an object that breaks later keeps its last valid version.
        file.check(&(doc(&pod("a")) + &pod("b")), "Pod a 1, Pod b 5", &[]);
        file.says(&(doc(&pod("a")) + &text));
        assert_eq!(file.unread(), (false, String::new()), "{text}");
    }
}

#[test]
fn only_the_addresses_of_bad_documents_are_closed_at_the_start() {
    let dir = TempDir::new().unwrap();
    let bad = "apiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {hostNetwork: sure}\nstatus: {podIP: 10.0.0.9}\n---\n\
               apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\nspec: {hosts: 7, addresses: [10.1.0.0/16]}\n";
    let hidden = |text: &str| {
        fs::write(dir.path().join("f.yaml"), doc(&pod("a")) + text).unwrap();
        let (mesh, _) = read_once(dir.path(), TrustDomain::default()).unwrap();
        assert_eq!((mesh.is_partial(), mesh.hides_addresses()), (true, true));
        let may_hide = |address: &str| mesh.may_hide(address.parse().unwrap());
        (mesh.is_blind(), ["10.0.0.9", "::ffff:10.1.2.3", "10.0.0.8", "203.0.113.1"].map(may_hide))
    };
    assert_eq!(hidden(bad), (false, [true, true, false, false]));
    // A document that does not tell its addresses may have any.
    assert_eq!(hidden(&format!("{bad}---\nkind: [\n")), (true, [true; 4]));
}

#[test]
fn a_restart_keeps_the_last_valid_state_of_each_object() {
    let kept = TempDir::new().unwrap();
    let kept = kept.path().join("mesh");
    let mut file = Watched::new(Some(&kept));
    let named = |name: &str, spec: &str| doc(&policy("demo", spec).replace("name: p", &format!("name: {name}")));
    let (deny, audit) = ("{action: DENY, rules: [{}]}", "{action: AUDIT, rules: [{}]}");
    let bad = "{action: DENNY}";
    file.says(&(named("p", deny) + &named("q", deny) + &named("r", deny)));
    // One policy after the other becomes invalid, while the others change; r is removed.
    file.says(&(named("p", bad) + &named("q", audit) + &named("r", deny)));
    file.says(&(named("p", bad) + &named("q", bad)));
    file.restart(&kept);
    let told = ["f.yaml:4 ", "f.yaml:9 "].map(|place| format!("{place}{STAYS}"));
    file.check(
        &(named("p", bad) + &named("q", bad)),
        "AuthorizationPolicy p 4, AuthorizationPolicy q 9",
        &told.each_ref().map(String::as_str),
    );
    let mesh = Snapshot::default().apply(Batch::of({
        let mut joiner = Joiner::new(TrustDomain::default(), None);
        Folder::new(file.dir.path().to_owned(), Some(kept), FolderLimits::default())
            .read(&mut joiner, Reading::Thorough);
        joiner.take().changes
    }));
    assert_eq!(policies(&mesh), "DENY demo/p, AUDIT demo/q | ");
    assert_eq!(file.unread(), (false, String::new()));
}
