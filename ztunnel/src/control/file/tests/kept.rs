//! Policies stay in force when their file becomes invalid.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::control::file::folder::{Folder, Reading};

/// Waits until these policies are in force.
async fn until_policies(mesh: &mut Mesh, expected: &str) -> Arc<Snapshot> {
    let waiting = async {
        while policies(&mesh.reader.load()) != expected {
            mesh.changes.changed().await.unwrap();
        }
    };
    let done = timeout(mesh.patience, waiting).await;
    let snapshot = mesh.reader.load();
    assert!(done.is_ok(), "not {expected:?} but {:?}, {:?}", policies(&snapshot), snapshot.problems());
    snapshot
}

#[test]
fn a_file_that_is_renamed_and_broken_at_once_leaves_its_policies_in_force() {
    let dir = TempDir::new().unwrap();
    let mut folder = Folder::new(dir.path().to_owned(), None, FolderLimits::default());
    let mut joiner = Joiner::new(TrustDomain::default(), None);
    let mut mesh = Snapshot::default();
    // Changes: files with their new text, or without a text to be removed. Then the policies in force after the next
    // reading, and the reported problems.
    let mut check = |changes: &[(&str, Option<&str>)], expected: &str, told: &[&str]| {
        for (name, text) in changes {
            match text {
                Some(text) => fs::write(dir.path().join(name), text).unwrap(),
                None => fs::remove_file(dir.path().join(name)).unwrap(),
            }
        }
        folder.read(&mut joiner, Reading::Changed);
        mesh = mesh.apply(Batch::of(joiner.take().changes));
        let policies = mesh.policies().authorization();
        let found: Vec<String> = policies.iter().map(|one| format!("{} {}", one.action.name(), one.name)).collect();
        assert_eq!(found.join(", "), expected);
        let problems: Vec<String> = folder.problems().map(|problem| problem.to_string()).collect();
        let is_told =
            problems.len() == told.len() && problems.iter().zip(told).all(|(one, told)| one.starts_with(told));
        assert!(is_told, "{problems:?}");
    };
    let deny = policy("demo", "{action: DENY, rules: [{}]}");
    let audit = deny.replace("DENY", "AUDIT");
    let went = "p.yaml: was removed when q.yaml was added, which cannot be read: the objects of the removed file stay \
        in force until";
    check(&[("p.yaml", Some(&deny))], "DENY demo/p", &[]);
    check(&[("p.yaml", None), ("q.yaml", Some("kind: ["))], "DENY demo/p", &["q.yaml:1: ", went]);
    check(
        &[("q.yaml", None), ("r.yaml", Some("kind: {"))],
        "DENY demo/p",
        &["r.yaml:1: ", "p.yaml: was removed when q.yaml, r.yaml"],
    );
    check(&[("r.yaml", Some(&audit))], "AUDIT demo/p", &[]);
    check(
        &[("r.yaml", None), ("s.yaml", Some("kind: ["))],
        "AUDIT demo/p",
        &["s.yaml:1: ", "r.yaml: was removed when s.yaml"],
    );
    check(&[("r.yaml", Some(&deny))], "DENY demo/p", &["s.yaml:1: "]);
    // A file that is removed while another was broken before is removed on purpose.
    check(&[("r.yaml", None)], "", &["s.yaml:1: "]);
    check(&[("s.yaml", Some(&deny))], "DENY demo/p", &[]);
    check(&[("s.yaml", None), ("t.yaml", Some("kind: ["))], "DENY demo/p", &["t.yaml:1: ", "s.yaml: was removed"]);
    check(&[("t.yaml", None)], "", &[]);
}

#[tokio::test]
async fn a_policy_of_a_service_that_may_be_in_what_was_never_read_closes_its_namespace() {
    let dir = TempDir::new().unwrap();
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: demo}\n";
    let of_web = |more: &str| policy("demo", &format!("{{targetRefs: [{{kind: Service, name: web}}], {more}}}"));
    fs::write(dir.path().join("p.yaml"), of_web("action: DENY, rules: [{}]")).unwrap();
    fs::write(dir.path().join("s.yaml"), format!("{service}spec: 7\n")).unwrap();
    running(dir.path(), SOON, async |mesh| {
        let snapshot = until_policies(mesh, "DENY demo/p | s.yaml in demo").await;
        let told =
            "p.yaml:1: AuthorizationPolicy demo/p: spec.targetRefs: s.yaml has never been readable and may name the \
             pods";
        assert!(snapshot.problems().iter().any(|one| one.to_string().starts_with(told)), "{:?}", snapshot.problems());
        mesh.write("p.yaml", &of_web("action: AUDIT"));
        until_policies(mesh, "AUDIT demo/p | ").await;
        mesh.write("p.yaml", &of_web(""));
        until_policies(mesh, "ALLOW demo/p | s.yaml in demo").await;
        // For a service without a selector, slices say which pods are behind it; a service with a selector says it
        // itself.
        mesh.write("t.yaml", &format!("{service}spec: {{ports: [{{port: 80}}]}}\n"));
        let snapshot = mesh.until("| p.yaml:1: ; p.yaml:1: ; s.yaml:4: ").await;
        assert_eq!(policies(&snapshot), "ALLOW demo/p | s.yaml in demo");
        mesh.write("t.yaml", &format!("{service}spec: {{selector: {{app: web}}, ports: [{{port: 80}}]}}\n"));
        until_policies(mesh, "ALLOW demo/p | ").await;
        mesh.remove("t.yaml");
        until_policies(mesh, "ALLOW demo/p | s.yaml in demo").await;
        mesh.remove("s.yaml");
        let snapshot = until_policies(mesh, "ALLOW demo/p | ").await;
        assert!(
            snapshot.problems()[0].to_string().contains("there is no Service demo/web"),
            "{:?}",
            snapshot.problems()
        );
    })
    .await;
}

/// Starts a daemon on the folder, and returns its policies.
fn started(dir: &TempDir, kept: &TempDir) -> (Folder, String) {
    let mut folder = Folder::new(dir.path().to_owned(), Some(kept.path().join("mesh")), FolderLimits::default());
    let mut joiner = Joiner::new(TrustDomain::default(), None);
    folder.read(&mut joiner, Reading::Thorough);
    let mesh = Snapshot::default().apply(Batch::of(joiner.take().changes));
    let found = policies(&mesh).trim_end_matches(" | ").to_owned();
    (folder, found)
}

#[test]
fn a_restart_does_not_forget_what_a_broken_file_said() {
    let (dir, other, kept) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let write = |dir: &TempDir, text: &str| fs::write(dir.path().join("p.yaml"), text).unwrap();
    let deny = policy("demo", "{action: DENY, rules: [{}]}");
    let audit = deny.replace("DENY", "AUDIT");
    let broken = "kind: [";
    write(&dir, &deny);
    write(&other, &audit);
    assert_eq!(started(&dir, &kept).1, started(&dir, &kept).1);
    assert_eq!(started(&other, &kept).1, "AUDIT demo/p");

    write(&dir, broken);
    let (folder, found) = started(&dir, &kept);
    assert_eq!((found.as_str(), folder.is_partial()), ("DENY demo/p", false));
    let problems: Vec<String> = folder.problems().map(|problem| problem.to_string()).collect();
    assert!(
        problems.len() == 1
            && problems[0].ends_with("; it may be AuthorizationPolicy demo/p, whose last valid version stays in force"),
        "{problems:?}"
    );

    // Valid content replaces the copy.
    write(&dir, &audit);
    started(&dir, &kept);
    write(&dir, broken);
    assert_eq!(started(&dir, &kept).1, "AUDIT demo/p");

    // A crash has truncated the copies to half.
    let copies = || fs::read_dir(kept.path().join("mesh")).unwrap().map(|copy| copy.unwrap().path());
    for copy in copies() {
        assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
        let bytes = fs::read(&copy).unwrap();
        fs::write(&copy, &bytes[..bytes.len() / 2]).unwrap();
    }
    let (folder, found) = started(&dir, &kept);
    assert_eq!((found.as_str(), folder.is_partial()), ("", true));

    // The copy of a removed file is removed; the copy of the other folder is not. Each folder has a record as well.
    fs::remove_file(dir.path().join("p.yaml")).unwrap();
    started(&dir, &kept);
    assert_eq!(copies().count(), 3);
    write(&other, &audit);
    started(&other, &kept);
    write(&other, broken);
    assert_eq!(started(&other, &kept).1, "AUDIT demo/p");
    assert_eq!(fs::metadata(kept.path().join("mesh")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn where_nothing_can_be_kept_the_mesh_is_read_all_the_same() {
    let (dir, kept) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::write(kept.path().join("mesh"), "a file in the way").unwrap();
    fs::write(dir.path().join("p.yaml"), policy("demo", "{action: DENY, rules: [{}]}")).unwrap();
    assert_eq!(started(&dir, &kept).1, "DENY demo/p");
    fs::write(dir.path().join("p.yaml"), "kind: [").unwrap();
    let (folder, found) = started(&dir, &kept);
    assert_eq!((found.as_str(), folder.is_partial()), ("", true));
}

/// Starts a daemon on the folder, and returns what it publishes first.
async fn restarted(dir: &TempDir, kept: &TempDir) -> Snapshot {
    let folder = MeshFolder::open(dir.path(), TrustDomain::default()).unwrap();
    let batch = folder.with_kept(kept.path().join("mesh")).next().await.unwrap();
    Snapshot::default().apply(batch)
}

/// `POLICIES | FILE in NAMESPACE, ...`, and whether unknown addresses may be pods.
async fn after_a_restart(dir: &TempDir, kept: &TempDir) -> (String, bool) {
    let mesh = restarted(dir, kept).await;
    (policies(&mesh), mesh.is_blind())
}

#[tokio::test]
async fn close_all_pods_by_a_new_broken_file_and_a_restart() {
    let (dir, kept) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let deny = policy("demo", "{action: DENY, rules: [{}]}");
    let (broken, in_force) = ("kind: [ # AuthorizationPolicy", ("DENY demo/p | ".to_owned(), false));
    // The first start with a broken file: nobody knows what it says.
    write("a.yaml", &deny);
    write("evil.yaml", broken);
    let closed = |names: &str| (format!("{names} | evil.yaml anywhere"), true);
    assert_eq!(after_a_restart(&dir, &kept).await, closed("DENY demo/p"));
    assert_eq!(after_a_restart(&dir, &kept).await, closed("DENY demo/p"));

    fs::remove_file(dir.path().join("evil.yaml")).unwrap();
    assert_eq!(after_a_restart(&dir, &kept).await, in_force);
    write("evil.yaml", broken);
    for _ in 0..2 {
        let mesh = restarted(&dir, &kept).await;
        assert_eq!((policies(&mesh), mesh.is_blind()), in_force);
        assert!(mesh.is_partial() && mesh.problems().len() == 1, "{:?}", mesh.problems());
    }
    // A valid file that came beside it is known as well.
    write("b.yaml", &deny.replace("name: p", "name: q"));
    let both = ("DENY demo/p, DENY demo/q | ".to_owned(), false);
    assert_eq!(after_a_restart(&dir, &kept).await, both);
    write("b.yaml", broken);
    assert_eq!(after_a_restart(&dir, &kept).await, both);
}

#[tokio::test]
async fn what_a_file_said_is_not_lost_as_a_new_file_would_be() {
    let (dir, kept) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let remove = |name: &str| fs::remove_file(dir.path().join(name)).unwrap();
    let deny = policy("demo", "{action: DENY, rules: [{}]}");
    let broken = "kind: [ # AuthorizationPolicy";
    write("a.yaml", &deny);
    assert_eq!(after_a_restart(&dir, &kept).await, ("DENY demo/p | ".to_owned(), false));
    // Renamed and broken while no daemon runs, and another daemon after that.
    remove("a.yaml");
    write("b.yaml", broken);
    for _ in 0..2 {
        let mesh = restarted(&dir, &kept).await;
        assert_eq!((policies(&mesh), mesh.is_blind()), ("DENY demo/p | ".to_owned(), false));
        let told: Vec<String> = mesh.problems().iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|told| told.starts_with("a.yaml: was removed when b.yaml was added")), "{told:?}");
    }
    remove("b.yaml");
    assert_eq!(after_a_restart(&dir, &kept).await, (" | ".to_owned(), false));

    // The copy of a file of the record is gone.
    write("a.yaml", &deny);
    assert_eq!(after_a_restart(&dir, &kept).await, ("DENY demo/p | ".to_owned(), false));
    let copies = || fs::read_dir(kept.path().join("mesh")).unwrap().map(|copy| copy.unwrap().path());
    let is_copy = |path: &PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap()).contains("kind: Authorization");
    let lost: Vec<PathBuf> = copies().filter(is_copy).collect();
    assert_eq!(lost.len(), 1);
    fs::remove_file(&lost[0]).unwrap();
    write("a.yaml", broken);
    assert_eq!(after_a_restart(&dir, &kept).await, (" | a.yaml anywhere".to_owned(), true));
    remove("a.yaml");
    write("b.yaml", broken);
    assert_eq!(after_a_restart(&dir, &kept).await, (" | b.yaml anywhere".to_owned(), true));
}

#[tokio::test]
async fn without_copies_there_is_no_record() {
    let (dir, kept) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::write(kept.path().join("mesh"), "a file in the way").unwrap();
    fs::write(dir.path().join("a.yaml"), policy("demo", "{action: DENY, rules: [{}]}")).unwrap();
    assert_eq!(after_a_restart(&dir, &kept).await, ("DENY demo/p | ".to_owned(), false));
    fs::write(dir.path().join("b.yaml"), "kind: [ # AuthorizationPolicy").unwrap();
    assert_eq!(after_a_restart(&dir, &kept).await, ("DENY demo/p | b.yaml anywhere".to_owned(), true));
}
