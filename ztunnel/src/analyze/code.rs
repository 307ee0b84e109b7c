//! The codes of findings: one table, from which the documents are generated.

use std::fmt;

use serde::{Serialize, Serializer};

use super::finding::Severity;

/// Defines the enum, and the table with the meaning of each code.
macro_rules! codes {
    ($($name:ident, $code:literal, $severity:ident, $meaning:literal, $remedy:literal;)*) => {
        /// The subject of a finding. The text of a code never changes, and no code is used again for another subject.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $name,)*
        }

        impl Code {
            /// All codes, by their text.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its text.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }

            /// The severity of such a finding. Where single findings are milder or worse, it is the most usual
            /// severity.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity),* }
            }

            /// What is wrong, in one sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning),* }
            }

            /// What to do about it.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy),* }
            }
        }
    };
}

codes! {
    AllowAdmitsPlaintext, "allow-admits-plaintext", Warning,
        "An ALLOW rule has only not… fields for clients: it also allows plaintext connections, whose clients have no identity.",
        "Set mTLS mode STRICT for the pods, or name the clients that may connect.";
    ClientOutsideMesh, "client-outside-mesh", Warning,
        "An ALLOW policy names clients whose pods are outside of the mesh: they have no identity, so the rule does not match them.",
        "Label the namespace or the pods of the clients.";
    CustomAction, "custom-action", Error,
        "A policy has the action CUSTOM, which needs an authorizer that cannot be asked at layer 4: connections that match are refused.",
        "Write ALLOW or DENY rules.";
    DeadValue, "dead-value", Warning,
        "Another field of the same rule excludes a value, so the value has no effect.",
        "Correct one of the two fields, or remove the value.";
    DeniedRule, "denied-rule", Warning,
        "A DENY rule matches every connection that an ALLOW rule matches.",
        "Narrow the DENY rule, or remove the ALLOW rule.";
    DenyMissesPlaintext, "deny-misses-plaintext", Warning,
        "A DENY rule names clients by identity, and the pods accept plaintext, in which clients have no identity: such clients are not denied.",
        "Set mTLS mode STRICT for the pods, or deny clients without identity as well (notPrincipals: [\"*\"]).";
    DryRun, "dry-run", Info,
        "A policy is in dry-run: it is evaluated and reported, and not enforced.",
        "Remove the annotation istio.io/dry-run when the log shows the decisions that you expect.";
    DuplicateAddress, "duplicate-address", Error,
        "Several pods claim one address: until only one of them claims it, no connection to the address succeeds.",
        "Remove the manifests of pods that no longer exist.";
    DuplicatePolicy, "duplicate-policy", Warning,
        "Two policies have the same rules for the same pods.",
        "Remove one of the two.";
    EmptyMesh, "empty-mesh", Info,
        "No pod is in the mesh: no policy is enforced, and nothing is encrypted.",
        "Label a namespace, or a pod, istio.io/dataplane-mode: ambient.";
    ExcludedPort, "excluded-port", Warning,
        "A pod excludes a port from capture where mTLS mode is STRICT: the mode is not enforced at that port.",
        "Remove the annotation traffic.ambient.mesh/exclude-inbound-ports, or protect the port by other means.";
    ExternalName, "external-name", Info,
        "A Service of type ExternalName is an alias in DNS: clients connect to the addresses of the other name.",
        "Write policies and ServiceEntries for the other name.";
    HostPort, "host-port", Info,
        "A pod of the mesh has a hostPort: connections to the port of the node reach the pod in plaintext.",
        "Remove the hostPort, or set mTLS mode STRICT for the pod, which refuses these connections.";
    Incomplete, "incomplete", Info,
        "A part of the manifests cannot be read, so findings about names and selectors are left out.",
        "Repair the files that cannot be read, and run the command again.";
    InjectionAndAmbient, "injection-and-ambient", Warning,
        "A namespace is labelled for sidecar injection and for the ambient mesh.",
        "Keep one of the two labels.";
    L7WithoutWaypoint, "l7-without-waypoint", Warning,
        "A policy has fields that cannot be evaluated at layer 4, such as HTTP methods.",
        "Remove the fields, or have a waypoint enforce the policy.";
    MalformedPrincipal, "malformed-principal", Warning,
        "A principal is not TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT.",
        "Correct the principal.";
    Manifest, "manifest", Error,
        "An object, or a field of an object, cannot be read or is not honoured.",
        "See the message.";
    NamespacesOutsideMesh, "namespaces-outside-mesh", Info,
        "mTLS mode is STRICT for the whole mesh, and namespaces are outside of the mesh, where the mode is not enforced.",
        "Label the namespaces.";
    NetworkPolicyBlocksHbone, "network-policy-blocks-hbone", Warning,
        "A NetworkPolicy lets ports of applications through for pods of the mesh, and not port 15008, to which all connections between pods of the mesh go.",
        "Allow TCP port 15008 for the same peers.";
    NeverMatches, "never-matches", Warning,
        "Fields of a rule exclude each other: no connection matches.",
        "Correct one of the fields, or remove the entry.";
    NoPods, "no-pods", Info,
        "No pod and no template of pods is in the manifests, so selectors, names and ports are not checked.",
        "Add the manifests of the workloads.";
    NoRules, "no-rules", Warning,
        "A policy that is not ALLOW has no rules, so it has no effect.",
        "Write rules: [{}] to match every connection, or remove the policy.";
    NoStrict, "no-strict", Info,
        "No PeerAuthentication sets mTLS mode STRICT: pods accept plaintext, in which clients have no identity.",
        "Add a PeerAuthentication with mode STRICT to the root namespace when all clients are in the mesh.";
    OtherTrustDomain, "other-trust-domain", Warning,
        "A principal has a trust domain that no pod of the mesh has.",
        "Correct the trust domain, or give --trust-domain.";
    PermissiveLeftOver, "permissive-left-over", Warning,
        "A PeerAuthentication accepts plaintext where a wider one sets mTLS mode STRICT.",
        "Remove it when no client needs plaintext any more.";
    PodOutsideMesh, "pod-outside-mesh", Warning,
        "Pods are outside of the mesh, and a mode or a policy that is meant for them is not enforced.",
        "Label the namespace or the pods.";
    PodRefused, "pod-refused", Warning,
        "Pods are labelled and cannot be enrolled on their node: connections from the mesh to them fail.",
        "Set the annotation ambient.mesh/netns.";
    PodWithSidecar, "pod-with-sidecar", Warning,
        "Pods are labelled for the mesh and have a sidecar proxy of their own: they are not enrolled.",
        "Remove the sidecar, or the label.";
    ProbeWithoutNodeAddress, "probe-without-node-address", Info,
        "Pods with mode STRICT have probes, and the addresses of their nodes are not known, so explain cannot recognise the kubelet.",
        "Fill in status.hostIPs.";
    ServiceAddress, "service-address", Warning,
        "A policy names the address of a Service where the address of a pod is compared.",
        "Write the addresses of the pods, or use spec.targetRefs.";
    ServiceAddressUnknown, "service-address-unknown", Info,
        "A Service has no clusterIP in its manifest, so a daemon that reads the manifest does not know the address: connections to it are passed on in plaintext.",
        "Export the Service from the cluster, so that spec.clusterIPs is filled in.";
    ServiceNotReady, "service-not-ready", Info,
        "No endpoint of a Service is ready: connections to it are refused.",
        "See the status of the pods.";
    ServiceOtherAddress, "service-other-address", Info,
        "A Service in front of pods of the mesh has addresses by which connections reach the pods in plaintext.",
        "Have pods of the mesh use the name or the clusterIP of the Service.";
    ServiceOutsideMesh, "service-outside-mesh", Info,
        "All pods of a Service are outside of the mesh, and other pods of its namespace are inside.",
        "Label the pods.";
    ServicePort, "service-port", Warning,
        "A policy names the port of a Service where the port of the pod is compared.",
        "Write the port of the pod.";
    ServicePortWithoutEndpoint, "service-port-without-endpoint", Warning,
        "A port of a Service leads to a named port that no container has, or its name differs from the names of the ports of EndpointSlices and Endpoints.",
        "Name a port of a container, or write its number.";
    ServiceWithoutEndpoints, "service-without-endpoints", Warning,
        "A Service has no endpoints.",
        "Add a selector or an EndpointSlice, or see the status of the pods.";
    SessionAffinity, "session-affinity", Info,
        "A Service has sessionAffinity: ClientIP, which keeps a client at one pod without a timeout.",
        "Do not rely on the affinity, or keep the state of clients outside of the pods.";
    SeveralPeerAuthentications, "several-peer-authentications", Error,
        "Two PeerAuthentications are for the same pods: one has no effect.",
        "Keep one of the two.";
    ShadowedRule, "shadowed-rule", Warning,
        "Another rule already matches every connection that a rule matches.",
        "Remove the rule, or narrow the other one.";
    SpiffePrefix, "spiffe-prefix", Error,
        "A principal begins with spiffe://, which principals of policies do not: it never matches.",
        "Remove spiffe://.";
    SplitRule, "split-rule", Warning,
        "A rule with only from is followed by a rule without from, or the reverse: one dash too many makes two rules of one, and the second matches every client.",
        "Remove the dash, if one rule is meant.";
    UndeclaredPort, "undeclared-port", Info,
        "A policy names a port that no pod that it selects declares.",
        "Correct the port, or declare it.";
    UnenforcedPolicy, "unenforced-policy", Warning,
        "All pods that a policy selects are outside of the mesh: it is not enforced.",
        "Label the namespace or the pods.";
    UnknownCode, "unknown-code", Warning,
        "An annotation suppresses findings of a code that does not exist.",
        "Write a code that analyze --list-codes prints.";
    UnknownMode, "unknown-mode", Warning,
        "The label istio.io/dataplane-mode has a value that is neither ambient nor none: it has no effect.",
        "Write ambient or none, or remove the label.";
    UnknownNamespace, "unknown-namespace", Warning,
        "A policy is in a namespace that has no manifest and no pod.",
        "Correct metadata.namespace, or add the manifests of the namespace.";
    UnknownPrincipal, "unknown-principal", Warning,
        "No pod has the identity that a policy names.",
        "Correct the principal, or add the manifests of the pods.";
    UnknownServiceAccount, "unknown-service-account", Warning,
        "No pod has the service account that a policy names.",
        "Correct the service account, or add the manifests of the pods.";
    UnknownSourceNamespace, "unknown-source-namespace", Warning,
        "A policy names a namespace of clients that has no manifest and no pod.",
        "Correct the namespace, or add its manifests.";
    UnlabelledClient, "unlabelled-client", Warning,
        "Pods outside of the mesh are in a namespace with pods of mTLS mode STRICT, which refuse their connections.",
        "Label the pods.";
    UnmatchedSelector, "unmatched-selector", Warning,
        "A selector matches no pod.",
        "Correct the selector, or label the pods.";
    UnmatchedTarget, "unmatched-target", Warning,
        "A policy targets a Service that has no pod.",
        "Correct the selector of the Service, or its endpoints.";
    UnreadPolicies, "unread-policies", Error,
        "A file that may hold policies cannot be read: a daemon that starts with it refuses connections to the pods that those policies may select.",
        "Repair the file.";
}

impl Code {
    /// The code with this text.
    #[must_use]
    pub fn find(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.code() == text)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.code())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::Code;

    #[test]
    fn codes_are_ordered_and_say_what_to_do() {
        let texts: Vec<&str> = Code::ALL.iter().map(|code| code.code()).collect();
        assert!(texts.is_sorted_by(|one, other| one < other), "{texts:?}");
        for code in Code::ALL {
            let is_code = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
            assert!(is_code(code.code()), "{code}");
            for sentence in [code.meaning(), code.remedy()] {
                let first = sentence.chars().next().unwrap();
                assert!(
                    sentence.ends_with('.') && (first.is_uppercase() || sentence.starts_with("mTLS")),
                    "{code}: {sentence}"
                );
            }
            assert_eq!(Code::find(code.code()), Some(*code));
        }
        assert_eq!(Code::find("nothing"), None);
    }
}
