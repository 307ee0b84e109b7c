//! A catalogue that follows changes is equal to a catalogue that is made from the same mesh at once.

use std::collections::BTreeMap;

use proptest::prelude::{ProptestConfig, any, prop, proptest};

use crate::{
    control::{
        join::Joiner,
        manifests::tests::changes::{any_file, say},
    },
    model::identity::TrustDomain,
    plane::{
        catalogue::{Catalogue, Kind, Resource},
        translate::{Touched, Translator},
    },
    store::{change::Batch, snapshot::Snapshot},
};

/// A mesh of files, and its catalogue.
pub(super) struct Following {
    pub(super) joiner: Joiner,
    pub(super) mesh: Snapshot,
    translator: Translator,
    pub(super) catalogue: Catalogue,
}

impl Following {
    pub(super) fn new() -> Self {
        Self {
            joiner: Joiner::new(TrustDomain::default(), None),
            mesh: Snapshot::default(),
            translator: Translator::new("Kubernetes"),
            catalogue: Catalogue::default(),
        }
    }

    pub(super) fn follow(&mut self) {
        let batch = Batch::of(self.joiner.take().changes);
        self.apply(batch);
    }

    fn apply(&mut self, batch: Batch) {
        let touched = Touched::by(&batch);
        let after = self.mesh.apply(batch);
        let changes = self.translator.translate(&self.mesh, &after, touched);
        self.catalogue.apply(changes, true);
        self.mesh = after;
    }

    fn resources(&self) -> BTreeMap<(Kind, String), Resource> {
        let of = |kind| self.catalogue.shelf(kind).all().map(move |(name, it)| ((kind, name.to_string()), it.clone()));
        Kind::ALL.into_iter().flat_map(of).collect()
    }
}

fn from_nothing(files: &[(&str, String)]) -> BTreeMap<(Kind, String), Resource> {
    let mut following = Following::new();
    for (name, text) in files {
        say(&mut following.joiner, name, text);
    }
    following.follow();
    following.resources()
}

#[track_caller]
fn assert_same(followed: &BTreeMap<(Kind, String), Resource>, expected: &BTreeMap<(Kind, String), Resource>) {
    for (key, resource) in expected {
        assert_eq!(followed.get(key), Some(resource), "{key:?}");
    }
    let more: Vec<_> = followed.keys().filter(|key| !expected.contains_key(key)).collect();
    assert!(more.is_empty(), "{more:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn following_changes_leads_to_the_resources_of_the_whole_mesh(
        steps in prop::collection::vec((0usize..4, any_file(), any::<bool>()), 1..12)
    ) {
        let mut files = [("a", String::new()), ("b", String::new()), ("c", String::new()), ("d", String::new())];
        let mut following = Following::new();
        for (file, text, together) in steps {
            say(&mut following.joiner, files[file].0, &text);
            files[file].1 = text;
            if !together {
                following.follow();
                assert_same(&following.resources(), &from_nothing(&files));
            }
        }
        following.follow();
        assert_same(&following.resources(), &from_nothing(&files));
        let version = following.catalogue.version();
        // A source that sends the whole mesh again changes nothing.
        let mut again = Joiner::new(TrustDomain::default(), None);
        for (name, text) in &files {
            say(&mut again, name, text);
        }
        following.apply(Batch { is_whole: true, ..Batch::of(again.take().changes) });
        assert_eq!(following.catalogue.version(), version);
        // An empty mesh leaves nothing behind.
        following.apply(Batch { is_whole: true, ..Batch::of(Vec::new()) });
        assert_same(&following.resources(), &from_nothing(&[]));
        assert!(following.translator.made.is_empty() && following.translator.made_for.is_empty());
        assert!(following.translator.namespaces.is_empty() && following.translator.outside.is_empty());
    }
}
