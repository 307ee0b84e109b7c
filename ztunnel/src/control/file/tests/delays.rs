//! Large files of one author, beside small ones of another: what takes effect first.

use std::fmt::Write as _;

use super::*;
use crate::control::file::folder::{Folder, Reading};

/// Everything over 10,000 bytes is read in parts.
const PARTS: FolderLimits = FolderLimits { bytes: u64::MAX, files: usize::MAX, at_once: 10_000, part: 10_000 };

fn named(namespace: &str, name: &str) -> String {
    policy(namespace, "{action: DENY, rules: [{}]}").replace("name: p", &format!("name: {name}"))
}

/// Many policies: some 100 bytes each.
fn many(namespace: &str, count: usize) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        writeln!(text, "---\n{}", named(namespace, &format!("x{number}"))).unwrap();
        text
    })
}

/// The folder of a daemon with these files, and its mesh.
struct Parts {
    dir: TempDir,
    folder: Folder,
    joiner: Joiner,
    mesh: Snapshot,
}

impl Parts {
    fn of(files: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        let folder = Folder::new(dir.path().to_owned(), None, PARTS);
        let mut parts =
            Self { dir, folder, joiner: Joiner::new(TrustDomain::default(), None), mesh: Snapshot::default() };
        parts.write(files);
        assert_eq!(parts.read().len(), 1, "the first reading is whole");
        parts
    }

    fn write(&self, files: &[(&str, &str)]) {
        for (name, text) in files {
            fs::write(self.dir.path().join(name), text).unwrap();
        }
    }

    /// Reads the folder. Returns the names of the policies that are in force after each part.
    fn read(&mut self) -> Vec<Vec<String>> {
        let mut published = Vec::new();
        loop {
            let is_finished = self.folder.read_part(&mut self.joiner, Reading::Changed);
            self.mesh = self.mesh.apply(Batch::of(self.joiner.take().changes));
            let names = self.mesh.policies().authorization().iter().map(|policy| policy.name.to_string());
            published.push(names.collect());
            if is_finished {
                return published;
            }
        }
    }
}

#[test]
fn delay_the_policy_of_another_by_megabytes_of_policies() {
    let mut parts = Parts::of(&[("demo.yaml", &named("demo", "old"))]);
    // By name, the large files come first. Each has several times the bytes of a part, as files of megabytes would.
    let files: Vec<(String, String)> =
        (0..4).map(|number| (format!("a{number}.yaml"), many(&format!("evil{number}"), 500))).collect();
    assert!(files.iter().all(|(_, text)| text.len() > 50_000));
    let mut all: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let both = named("demo", "old") + "---\n" + &named("demo", "new");
    all.push(("demo.yaml", &both));
    parts.write(&all);
    let published = parts.read();
    assert_eq!(published.len(), 4, "one large file after the other, the small file with the first");
    let counts: Vec<usize> = published.iter().map(Vec::len).collect();
    assert_eq!(counts, [502, 1002, 1502, 2002]);
    assert!(published[0].contains(&"demo/new".to_owned()));
}

#[test]
fn small_changes_take_effect_before_large_ones_and_removals_at_the_end() {
    let moved = named("demo", "moved");
    let mut parts = Parts::of(&[("a.yaml", &moved), ("b.yaml", &named("demo", "gone")), ("c.yaml", "")]);
    // A policy moves from a small file to a large one, and a file is removed.
    let large = many("other", 200);
    parts.write(&[
        ("a.yaml", ""),
        ("c.yaml", &(large.clone() + "---\n" + &moved)),
        ("d.yaml", &large),
        ("e.yaml", &named("demo", "new")),
    ]);
    fs::remove_file(parts.dir.path().join("b.yaml")).unwrap();
    let published = parts.read();
    assert!(published.len() > 2, "{}", published.len());
    for (part, names) in published.iter().enumerate() {
        let has = |name: &str| names.contains(&name.to_owned());
        assert!(has("demo/moved") && has("demo/new"), "part {part}");
        assert_eq!(has("demo/gone"), part + 1 < published.len(), "part {part}");
    }
    // Changes that are small together take effect together.
    parts.write(&[("a.yaml", &moved), ("c.yaml", &large)]);
    parts.write(&[("e.yaml", "")]);
    fs::remove_file(parts.dir.path().join("d.yaml")).unwrap();
    let mut parts = Parts { folder: Folder::new(parts.dir.path().to_owned(), None, FolderLimits::default()), ..parts };
    assert_eq!(parts.read().len(), 1);
    parts.write(&[("a.yaml", &named("demo", "one")), ("e.yaml", &named("demo", "two"))]);
    assert_eq!(parts.read().len(), 1);
}

/// While large files are read, small files change, come, and come back.
#[test]
fn a_small_change_waits_for_one_part_of_a_large_one() {
    let (old, new) = (named("demo", "old"), named("demo", "new"));
    let mut parts = Parts::of(&[("demo.yaml", &old), ("back.yaml", &named("demo", "back"))]);
    fs::remove_file(parts.dir.path().join("back.yaml")).unwrap();
    let files: Vec<(String, String)> =
        (0..4).map(|number| (format!("a{number}.yaml"), many(&format!("evil{number}"), 200))).collect();
    let all: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    parts.write(&all);
    let read_one = |parts: &mut Parts| {
        let is_finished = parts.folder.read_part(&mut parts.joiner, Reading::Changed);
        parts.mesh = parts.mesh.apply(Batch::of(parts.joiner.take().changes));
        let policies = parts.mesh.policies().authorization();
        let of_demo = policies.iter().filter(|policy| *policy.name.namespace == *"demo");
        let names: Vec<String> = of_demo.map(|policy| policy.name.name.to_string()).collect();
        (is_finished, names.join(" "))
    };
    assert_eq!(read_one(&mut parts), (false, "back old".to_owned()));
    parts.write(&[("demo.yaml", &(old + "---\n" + &new)), ("late.yaml", &named("demo", "late"))]);
    assert_eq!(read_one(&mut parts), (false, "back late new old".to_owned()));
    parts.write(&[("back.yaml", &named("demo", "back"))]);
    assert!(!read_one(&mut parts).0);
    let mut last = read_one(&mut parts);
    while !last.0 {
        last = read_one(&mut parts);
    }
    assert_eq!(last.1, "back late new old");
    assert_eq!(parts.mesh.policies().authorization().len(), 804);
    assert_eq!(parts.read().len(), 1, "nothing is left");
    assert_eq!(parts.mesh.policies().authorization().len(), 804);
}

/// A file that could never be read closes pods until the reading is finished that finds it valid.
#[tokio::test]
async fn what_is_missing_is_known_at_the_end_of_a_reading() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("a.yaml", "kind: [ # AuthorizationPolicy");
    write("b.yaml", &named("demo", "b"));
    let open = MeshFolder::open(dir.path(), TrustDomain::default()).unwrap();
    let mut folder = MeshFolder { limits: PARTS, ..open };
    let mut mesh = Snapshot::default().apply(folder.refresh(Reading::Thorough).await.unwrap());
    assert_eq!(policies(&mesh), "DENY demo/b | a.yaml anywhere");
    fs::rename(dir.path().join("a.yaml"), dir.path().join("z.yaml")).unwrap();
    write("z.yaml", &many("other", 400));
    write("c.yaml", &many("third", 300));
    let mut parts = 0;
    loop {
        let batch = folder.refresh(Reading::Changed).await.unwrap();
        mesh = mesh.apply(batch);
        parts += 1;
        assert_eq!(policies(&mesh).ends_with(" | a.yaml anywhere"), folder.unfinished.is_some(), "part {parts}");
        assert_eq!(mesh.is_blind(), folder.unfinished.is_some(), "part {parts}");
        if folder.unfinished.is_none() {
            break;
        }
    }
    assert!(parts > 1);
    assert_eq!(mesh.policies().authorization().len(), 701);
}
