use super::*;

const BRIDGE: &str = "{ \"cniVersion\": \"0.4.0\", \"name\": \"pods\",\n \"plugins\": [{\"type\": \"bridge\"}] }\n";

/// A node, and a program in place of the daemon's: a script that gets the arguments of a trial.
struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        let node = Self(tempfile::tempdir().unwrap());
        for folder in ["state/cni", "conf"] {
            fs::create_dir_all(node.path(folder)).unwrap();
        }
        node.program("echo '{\"supportedVersions\":[]}'");
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The daemon's own program does this.
    fn program(&self, script: &str) {
        fs::write(self.path("own"), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(self.path("own"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn place(&self) -> Place {
        Place::of(&self.path("state"))
    }

    fn installer(&self) -> Installer {
        let settings = Settings {
            programs: self.path("bin"),
            configuration: self.path("conf"),
            excluded: vec!["kube-system".to_owned()],
            root: "/".into(),
        };
        Installer { own: self.path("own"), ..Installer::new(self.place(), settings) }
    }

    fn conf(&self, name: &str) -> String {
        fs::read_to_string(self.path("conf").join(name)).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path("conf").join(name), text).unwrap();
    }

    fn files(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn what_is_installed_stays_over_restarts_and_leaves_no_byte_behind() {
    let node = Node::new();
    node.write("10-bridge.conflist", BRIDGE);
    fs::set_permissions(node.path("conf/10-bridge.conflist"), fs::Permissions::from_mode(0o640)).unwrap();
    node.installer().look().unwrap();
    let joined = node.conf("10-bridge.conflist");
    let value: serde_json::Value = serde_json::from_str(&joined).unwrap();
    let entry = &value["plugins"][1];
    assert_eq!((&entry["type"], &entry["excludeNamespaces"][0]), (&NAME.into(), &"kube-system".into()));
    assert_eq!(entry["socket"], node.place().socket().display().to_string());
    assert_eq!(fs::metadata(node.path("conf/10-bridge.conflist")).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::metadata(node.path("bin").join(NAME)).unwrap().permissions().mode() & 0o777, 0o755);

    // Another daemon.
    let mut installer = node.installer();
    for _ in 0..2 {
        installer.look().unwrap();
    }
    assert_eq!(node.conf("10-bridge.conflist"), joined);
    assert_eq!(installed(&node.place()), Some(Some(node.path("conf/10-bridge.conflist"))));

    assert!(installer.remover().remove().unwrap());
    installer.look_and_tell();
    assert_eq!(node.conf("10-bridge.conflist"), BRIDGE);
    assert_eq!((node.files("bin"), node.files("state/cni")), (Vec::new(), Vec::new()));
    assert_eq!(node.files("conf"), ["10-bridge.conflist"]);
    assert_eq!((installed(&node.place()), remove(&node.place()).unwrap()), (None, false));
}

/// As in a container without the mounts.
#[test]
fn a_plugin_in_a_directory_that_is_not_visible_is_not_said_to_be_removed() {
    let node = Node::new();
    node.write("10-bridge.conflist", BRIDGE);
    node.installer().look().unwrap();
    fs::rename(node.path("conf"), node.path("elsewhere")).unwrap();
    for _ in 0..2 {
        let error = remove(&node.place()).unwrap_err().to_string();
        assert!(error.contains("not visible") && error.contains("installed.json"), "{error}");
    }
    fs::rename(node.path("elsewhere"), node.path("conf")).unwrap();
    assert!(remove(&node.place()).unwrap());
    assert_eq!((node.conf("10-bridge.conflist").as_str(), node.files("bin")), (BRIDGE, Vec::new()));
}

#[test]
fn a_configuration_that_comes_later_or_is_written_anew_is_joined() {
    let node = Node::new();
    let mut installer = node.installer();
    assert!(matches!(installer.look(), Err(InstallError::NoConfiguration(_))));
    fs::remove_dir(node.path("conf")).unwrap();
    assert!(matches!(installer.look(), Err(InstallError::NoConfiguration(_))), "not even the folder");
    fs::create_dir(node.path("conf")).unwrap();
    node.write("10-bridge.conflist", BRIDGE);
    installer.look().unwrap();
    node.write("10-bridge.conflist", &BRIDGE.replace("bridge", "other"));
    installer.look().unwrap();
    assert!(conflist::has(&node.conf("10-bridge.conflist")));
    // One that the container runtime prefers.
    node.write("05-new.conflist", BRIDGE);
    installer.look().unwrap();
    assert!(conflist::has(&node.conf("05-new.conflist")));
    // A program that is gone, or another one.
    fs::remove_file(node.path("bin").join(NAME)).unwrap();
    installer.look().unwrap();
    assert_eq!(node.files("bin"), [NAME]);
    remove(&node.place()).unwrap();
    assert_eq!(
        (node.conf("05-new.conflist").as_str(), node.conf("10-bridge.conflist")),
        (BRIDGE, BRIDGE.replace("bridge", "other"))
    );
}

#[test]
fn what_cannot_be_joined_is_left_alone_and_told() {
    for (text, expected) in [
        ("{ not json", "not a list of CNI plugins"),
        ("\u{0}", "not a list"),
        ("{\"cniVersion\":\"0.4.0\",\"plugins\":[]}", "empty"),
    ] {
        let node = Node::new();
        node.write("10-bridge.conflist", text);
        let error = node.installer().look().unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("10-bridge.conflist"), "{error}");
        assert_eq!(node.conf("10-bridge.conflist"), text);
        remove(&node.place()).unwrap();
        assert_eq!(node.conf("10-bridge.conflist"), text);
    }
    let node = Node::new();
    fs::write(node.path("conf/10-bridge.conflist"), b"\xff\xfe").unwrap();
    assert!(node.installer().look().unwrap_err().to_string().contains("it is not text"));
    // The next one is joined: container runtimes that skip the first use it.
    node.write("20-good.conflist", BRIDGE);
    node.installer().look().unwrap();
    assert!(conflist::has(&node.conf("20-good.conflist")));
}

#[test]
fn a_program_that_does_not_run_on_the_node_is_never_put_into_the_configuration() {
    let node = Node::new();
    node.write("10-bridge.conflist", BRIDGE);
    for (script, expected) in [
        ("echo 'no such library' >&2; exit 127", "no such library"),
        ("exit 0", "does not run on the node"),
        ("echo nonsense", "nonsense"),
    ] {
        node.program(script);
        let error = node.installer().look().unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("glibc"), "{error}");
        assert_eq!((node.conf("10-bridge.conflist").as_str(), node.files("bin")), (BRIDGE, Vec::new()));
    }
    // One that is there stays when the next one does not run.
    node.program("echo '{\"supportedVersions\":[]}'");
    node.installer().look().unwrap();
    let before = fs::read(node.path("bin").join(NAME)).unwrap();
    node.program("exit 1");
    assert!(node.installer().look().is_err());
    assert_eq!(fs::read(node.path("bin").join(NAME)).unwrap(), before);
    assert!(conflist::has(&node.conf("10-bridge.conflist")));
}

#[test]
fn a_link_stays_a_link() {
    let node = Node::new();
    fs::write(node.path("real.conflist"), BRIDGE).unwrap();
    std::os::unix::fs::symlink(node.path("real.conflist"), node.path("conf/10-bridge.conflist")).unwrap();
    node.installer().look().unwrap();
    assert!(fs::symlink_metadata(node.path("conf/10-bridge.conflist")).unwrap().is_symlink());
    assert!(conflist::has(&node.conf("10-bridge.conflist")));
    remove(&node.place()).unwrap();
    assert_eq!(fs::read_to_string(node.path("real.conflist")).unwrap(), BRIDGE);
}

#[test]
fn other_directories_take_the_place_of_those_before() {
    let node = Node::new();
    fs::create_dir(node.path("other")).unwrap();
    node.write("10-bridge.conflist", BRIDGE);
    fs::write(node.path("other/10-bridge.conflist"), BRIDGE).unwrap();
    node.installer().look().unwrap();
    let mut next = node.installer();
    next.settings.configuration = node.path("other");
    next.settings.programs = node.path("other-bin");
    next.look().unwrap();
    assert_eq!((node.conf("10-bridge.conflist").as_str(), node.files("bin")), (BRIDGE, Vec::new()));
    assert!(conflist::has(&fs::read_to_string(node.path("other/10-bridge.conflist")).unwrap()));
    fs::write(node.place().installed(), "{").unwrap();
    assert!(
        remove(&node.place()).unwrap_err().to_string().contains("installed.json"),
        "it is told, and nothing is removed"
    );
    assert_eq!(node.files("other-bin"), [NAME]);
}
