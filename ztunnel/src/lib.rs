//! The node daemon of a mesh without sidecars and without iptables: BPF programs steer the TCP of labelled pods to it, and
//! it carries each connection on.
//!
//! Between pods of the mesh a connection crosses the wire only inside mutual TLS, under the identities of the two pods:
//! HTTP/2 CONNECT streams ("HBONE"), the same on the wire as those of Istio's ztunnel. Who is not in the mesh is spoken to,
//! and may speak to its pods, in plaintext. Who may connect to a pod is judged on the pod's own node, when a connection comes
//! and whenever the mesh changes. The README tells how to run it and what the kernel does; here stands how the program is
//! built.
//!
//! # The map of the house
//!
//! A folder uses folders of lower layers only, the files of a folder do not use each other in a circle, and each engine has
//! one folder. `cargo xtask tidy` checks this, as does a unit test of `xtask`; `cargo xtask tidy --layers` prints the table,
//! with the layers of folders that are still to come.
//!
//! | layer | folder | what |
//! |---|---|---|
//! | L0 | [`model`] | one type per meaning of an address, workloads, services, flows, [reasons to close](model::close::CloseReason) |
//! | L0 | [`lifecycle`] | the only [spawn](lifecycle::tasks::TaskSet), the signal to [drain](lifecycle::drain), waiting for what is rare [beside](lifecycle::aside()) what is busy |
//! | L1 | [`store`] | the mesh as one immutable [snapshot](store::snapshot::Snapshot), the [changes](store::change) that lead to the next one, and how it is [published](store::publish) |
//! | L1 | [`wire`] | the CONNECT request and its headers, both ways: pure, total, fuzzed |
//! | L2 | [`route`] | where a connection goes: a pure function of snapshot and flow |
//! | L2 | [`policy`] | who may connect to a workload: a pure function of snapshot and connection |
//! | L2 | [`istio`] | Istio's protocols between a node and its control plane: messages, services, and how they become the [`model`] |
//! | L3 | [`net`] | sockets, namespaces, the accept loop, dialling, copying; knows no pods |
//! | L3 | [`metrics`] | counters of the data path |
//! | L3 | [`explain`], [`analyze`] | the same functions, asked by a person: about one connection, about a whole mesh |
//! | L4 | [`redirect`] | BPF programs, maps, pins, netlink, sysctls; the only user of `aya` and netlink |
//! | L4 | [`identity`] | certificates: from an embedded CA or from files, always a [valid one at hand](identity::cache); the only user of `x509-parser` |
//! | L5 | [`tls`] | TLS 1.3 with exactly the expected peer; the only user of `rustls` |
//! | L6 | [`hbone`] | HTTP/2 client, server, [pool](hbone::pool), and the copying between a stream and a socket; the only user of `h2` |
//! | L6 | [`control`] | where the mesh comes from: [sources](control::source::MeshSource), of which a watched folder of Kubernetes manifests is the first; the only user of `k8s-openapi`, YAML and inotify |
//! | L7 | [`flow`] | one connection from accept to close: decide, dial, copy, record |
//! | L8 | [`pods`] | which pods of this node are enrolled, on which workers their connections live, and [the source](pods::local) of what only this node knows of them |
//! | L9 | [`config`] | flags and environment, read once; defaults with their reasons |
//! | L10 | [`app`] | puts all of it together; commands, admin endpoints (the only user of `hyper`), log |
//!
//! Beside this crate: `ebpf-common`, what kernel and daemon agree on: marks, keys, values, and which destinations are captured;
//! `ebpf`, the kernel's side (`connect` marks, `option` keeps the mark, `steer` steers, `guard` judges first packets again where
//! they leave, `count` counts); `tests`, two nodes and four pods on the real
//! kernel; `xtask`.
//!
//! # The way of a connection
//!
//! **Out of a pod.**
//! 1. The application connects. The hook `connect` in `ebpf` finds the socket's netns cookie in the map of enrolled pods
//!    and sets [`CAPTURE`](ebpf_common::mark::CAPTURE) on the socket; the address stays as it is. The rules of
//!    [`redirect::routes`] lead the SYN to `lo`, and `steer` gives it to the outbound listener of the worker that
//!    [`worker_of`](ebpf_common::worker_of) names.
//! 2. [`Acceptor`](net::listen::Acceptor) takes it. `getsockname` is where the pod wanted to go
//!    ([`OrigDst`](model::addr::OrigDst)), `getpeername` is the pod's socket ([`PeerAddr`](model::addr::PeerAddr)).
//! 3. [`outbound::serve`](flow::outbound::serve) opens the [record](flow::record::Recorded), loads the snapshot once and asks
//!    [`decide::outbound`](route::decide::outbound), which names up to three endpoints, in the order to be tried.
//! 4. To a pod of the mesh: [`Pool::open`](hbone::pool::Pool::open) finds or makes a tunnel to its port 15008. For a new one
//!    [`TunnelDialer`](flow::tunnel::TunnelDialer) connects out of the pod's namespace and
//!    [`Endpoint::connect`](tls::Endpoint::connect) proves both identities. A CONNECT names the pod's address and port; its
//!    answer 200 says that the application over there has been reached.
//!    To anyone else: [`Dialer::upstream`](net::dial::Dialer::upstream) has [`PodSockets`](net::dial::PodSockets) make a
//!    socket in the pod's namespace, claim it as the daemon's own ([`OwnSockets`](net::dial::OwnSockets)) and connect.
//! 5. [`relay::both`](hbone::relay::both), or [`copy::both`](net::copy::both), copies until both sides have finished or one
//!    fails; the two sides close or reset; the record leaves one line in the log, target `access`, and its counts in
//!    [`metrics`].
//!
//! **Into a pod, through a tunnel.** `steer` gives port 15008 to the HBONE listener of a worker, and
//! [`Spread`](pods::spread::Spread) to the worker whose turn it is. There [`inbound::serve`](flow::inbound::serve) asks
//! [`Admission`](flow::admission::Admission) for a place,
//! [`Endpoint::accept`](tls::Endpoint::accept) proves who comes, and [`server::serve`](hbone::server::serve) yields one
//! request per stream. [`target`](route::target::target) proves that the authority is this pod; the connection enters the
//! pod's [`Gate`](flow::gate::Gate), whose [`Guard`](policy::Guard) judges it: without its [`Permit`](policy::Permit) there is
//! no way to the application. [`Table::register_delivery`](flow::table::Table::register_delivery) chooses a port, and
//! [`Dialer::deliver`](net::dial::Dialer::deliver) connects to the application from the client's address and that port,
//! marked [`DELIVER`](ebpf_common::mark::DELIVER). `steer` knows the packet by its interface, `lo`, and passes it on. Only
//! then the peer is answered 200.
//!
//! **Into a pod, in plaintext.** [`plaintext::serve`](flow::plaintext::serve): the same, without TLS, HTTP/2 and identity. What
//! is denied at the port of a probe gets in all the same if [`NodeSockets`](redirect::node_sockets::NodeSockets) finds the
//! client's socket on this node: it is the kubelet.
//!
//! **When the mesh changes**, [`Gates::follow`](flow::gate::Gates::follow) looks for which pods of the node others decide than
//! before, and judges the live connections of those pods again, on a thread of its own; the task of a connection that is denied
//! now hears of it, and resets the connection.
//!
//! **How a pod gets there.** [`MeshFolder`](control::file::MeshFolder) reads the files; [`parse`](control::manifests::parse)
//! makes typed objects of their texts and has [`control::objects`] read what each object says;
//! the [`Joiner`](control::join::Joiner) relates the objects of all files and yields the workloads, services and policies that are
//! others now. [`feed`](control::source::feed) takes such batches from any source to the [`Publisher`](store::publish::Publisher),
//! which makes the next snapshot of the last one. What only the pod's own node needs, such as its network
//! namespace, goes to the node's [local source](pods::local::LocalSource). The [manager](pods::manager::Manager) wakes up and acts
//! on the difference that [`plan`](pods::reconcile::plan) finds: [`Node::enrol`](pods::pod::Node::enrol) proves that the
//! namespace is the pod's, asks for its [certificate](identity::cache::Certificates::handle), makes its listeners, has the [controller](redirect::Controller) redirect to them, and gives
//! them to the [workers](pods::worker).
//!
//! # Who owns what
//!
//! | state | sole owner | others get |
//! |---|---|---|
//! | the mesh | [`Publisher`](store::publish::Publisher), in the task that [feeds](control::source::feed) it | [`Reader::load`](store::publish::Reader::load): once per decision |
//! | local facts of this node's pods | [`LocalPublisher`](store::local::LocalPublisher), in the task of [`MeshFolder`](control::file::MeshFolder) | the [manager](pods::manager::Manager), through a [`LocalSource`](pods::local::LocalSource) |
//! | BPF programs, maps, links, pins, [records](redirect::record) | [`Controller`](redirect::Controller), in the [kernel](pods::kernel::Linux) of the [manager](pods::manager::Manager) | [`OwnSockets`](net::dial::OwnSockets), to claim a socket |
//! | a namespace's rules, routes, sysctls | the same, through the pod's [`NetnsLink`](redirect::NetnsLink) | nothing |
//! | which pods are enrolled or refused | [`Manager`](pods::manager::Manager) | [`ManagerHandle::describe`](pods::manager::ManagerHandle::describe) |
//! | keys and certificates | [`CertCache`](identity::cache::CertCache) | [`CertHandle`](identity::handle::CertHandle) of one identity |
//! | a pod's tunnels to other pods | [`Pool`](hbone::pool::Pool), one per pod and worker | one [stream](hbone::stream::Tunnel) of it |
//! | who has entered a pod | [`Gate`](flow::gate::Gate), shared by the workers; [`Gates`](flow::gate::Gates) judges again | a [`Visit`](flow::gate::Visit) |
//! | how many tunnels a pod takes, and from whom | [`Admission`](flow::admission::Admission), shared by the workers | a [`Place`](flow::admission::Place) |
//! | a pod's listeners and live connections | its worker; [`Table`](flow::table::Table), one per pod and worker | entries that leave when they are dropped |
//! | the tuples of a pod's upstream connections | [`Upstreams`](flow::table::Upstreams), shared by the workers: the kernel draws those ports | the same |
//! | copy buffers | [`BufferPool`](net::buffer::BufferPool) of the worker | a buffer, while there are bytes |
//! | memory for buffers and windows | [`Budget`](net::memory::Budget), one for the daemon | an [`Account`](net::memory::Account) of a pod or of one of its peers |
//! | settings | [`RunArgs`](config::RunArgs), taken apart in [`app::build`] | the values they need |
//!
//! The manager owns the controller as a value; there is no task with commands in between. Enrolling is a sequence that
//! nobody else may interleave with, and only the manager asks for it. Releasing a pod is a call
//! ([`Node::release`](pods::pod::Node::release)), not a drop: it waits for netlink, and its order matters.
//!
//! # Threads
//!
//! - **Control**, the main thread, a single-threaded runtime: mesh folder, certificates, manager, netlink, admin endpoints. Files are
//!   read on a blocking thread, so that a file system that hangs holds nothing up.
//! - **Data**, `ztunnel-data-N`: one single-threaded runtime each. A connection is accepted, copied and closed on one of
//!   them and never moves; every worker has listeners of its own in every pod. Only a tunnel, which carries many connections,
//!   may be handed to another worker before its first byte, so that all have as many. On the path of a byte there is no lock and
//!   no other thread; on the path of a connection there is one short lock ([`Upstreams`](flow::table::Upstreams), or
//!   [`Gate`](flow::gate::Gate)).
//! - **Log**, `ztunnel-log`: writes to standard output, many lines at once when there are many. A reader that stalls costs
//!   lines, which are counted.
//!
//! A thread enters a pod's namespace only for the length of a closure, which must not wait
//! ([`Netns::enter`](net::netns::Netns::enter)): to make a socket, or to read or write a few sysctls. A socket keeps the
//! namespace it was made in.
//!
//! # Without root
//!
//! The system calls that need root or a pod stand behind two traits. [`Sockets`](net::dial::Sockets) is asked once for a
//! connection: it makes the socket, and it says where an accepted one wanted to go. [`Kernel`](pods::kernel::Kernel) is what
//! the manager asks: network namespaces, and the redirection of what is in them. So `pods/tests` runs two whole nodes in one
//! process: manager, workers, gates and certificates are the daemon's, the connections are TCP over loopback under scripted
//! addresses. What the kernel itself does is tested as root, in `tests`.
//!
//! # Invariants
//!
//! Each is upheld by a type or by the test named behind it.
//!
//! - A decision sees one version of the mesh: [`decide`](route::decide) takes a snapshot, not a reader.
//! - Every task has an owner, and ends with it: [`TaskSet`](lifecycle::tasks::TaskSet); clippy refuses `tokio::spawn` and
//!   `spawn_local`.
//! - A thread that can't leave a pod's namespace aborts the process: the guard of
//!   [`Netns::enter`](net::netns::Netns::enter); tidy refuses `setns` elsewhere.
//! - A connection to a pod of the mesh is never made in plaintext, unless the pod is the connecting one itself; neither what
//!   its node can open nor what its annotations exclude changes that: a property test of [`route::decide`]. And it is never
//!   made with anyone but that pod: [`ConnectError`](tls::ConnectError) (`tests/tests/peers.rs`).
//! - Nobody gets to an application without having been judged: a delivery takes a [`Permit`](policy::Permit), which only a
//!   [`Guard`](policy::Guard) makes. At a port that the pod excludes from inbound capture the permit says so
//!   ([`Basis`](policy::Basis)). A change of policy misses no connection, wherever that is on its way: it enters before
//!   it is judged (`flow/gate/tests.rs`).
//! - A mesh that follows changes decides as one that is read from nothing, in whatever order the changes of a batch come, and
//!   however often: property tests in `control/manifests/tests/changes.rs`. Changes leave no memory behind
//!   (`ztunnel/tests/changes.rs`).
//! - No policy reaches beyond its own namespace, the root namespace excepted, whatever endpoints a tenant writes:
//!   [`Policies::protecting`](store::policies::Policies::protecting), where alone policies and workloads are joined.
//! - What can't be judged, or can't be read, never lets anyone in: tests of [`control::manifests`] and [`policy`].
//! - An expired certificate is never used: [`CertHandle::current`](identity::handle::CertHandle::current). A tunnel does not
//!   outlive the root of its peer: `tls::trust` (`tests/tests/rotation.rs`).
//! - `explain` says what the data path does: it asks the same functions ([`route::survey`], [`policy`], and
//!   [`Capture`](ebpf_common::capture::Capture), by which the connect hook decides as well). `app/cli/explain/tests/agreement.rs`
//!   compares it with the decisions of both ends on random meshes, `tests/tests/explain.rs` with curl.
//! - What the peer has not read is bounded by the windows of HTTP/2, and what an application has not read stays in its
//!   socket: [`hbone::relay`] (`tests/tests/tunnel.rs`).
//! - No byte of a peer, nor of a manifest, makes a parser panic: fuzz targets of [`wire`] and [`control::manifests`], whose
//!   seeds `cargo test` replays.
//! - A connection is counted, logged and taken out of its table once, whatever ends it: [`Recorded`](flow::record::Recorded)
//!   and [`Entry`](flow::table::Entry) do it in their drop (`tests/tests/load.rs`).
//! - What does not end well ends in a reset, never in a FIN, also when the daemon is killed: `flow::leg`, and a
//!   [`Tunnel`](hbone::stream::Tunnel) that is dropped (`tests/tests/endings.rs`).
//! - A delivery never has the numbers of a live connection the other way round:
//!   [`Table::register_delivery`](flow::table::Table::register_delivery) (`reversed_tuples_*` in `tests/tests/load.rs`).
//! - A pod is enrolled whole or not at all: [`Controller::enrol`](redirect::Controller::enrol) undoes what it did
//!   (`tests/tests/refusals.rs`).
//! - A pod that changes is enrolled anew only if it must be: another identity, another namespace, an address that the
//!   namespace lacks (`tests/tests/updates.rs`).
//! - A pod that was captured is opened only when the mesh no longer wants it. Whatever else goes wrong with it, it is
//!   [closed](pods::pod::Node::close): captured, and served by nobody (`tests/tests/changes.rs`).
//! - A namespace is a pod's only if it has all of the pod's addresses, is not the node's, and no other pod is enrolled or on
//!   record with it, or names it while nobody is on record: [`Claims`](pods::claims::Claims),
//!   [`PodError`](pods::pod::PodError) (`tests/tests/thefts.rs`).
//! - Nobody but the kubelet gets to a probe's port past policy: it is known by its socket's user and cgroup,
//!   [`redirect::kubelet`] (`tests/tests/probes.rs`).
//! - What a pod does to its own network namespace holds nobody else up: answers are filtered and bounded in [`redirect::link`],
//!   and each pod is looked at by a task of its own (`hold_the_daemon_up_with_an_endless_namespace` in `tests/tests/hostile.rs`).
//! - Without a daemon a captured pod's connects are refused, and connections to it are reset; nothing gets past
//!   (`tests/tests/crash.rs`).
//! - No first packet of a captured pod leaves it past the daemon, whatever became of its socket since the connect, or without any:
//!   [`redirect::guard`] (`tests/tests/escapes.rs`).
//! - What captures stays, or the daemon is not ready: [`Controller::mend`](redirect::Controller::mend). A pin that would not outlive
//!   the daemon is none: [`PinDir::survive`](redirect::pins::PinDir::survive). A pod has one installation:
//!   [`foreign`](redirect::foreign) (`tests/tests/links.rs`).
//! - A released pod's rules, routes, sysctls and listeners are as before (`tests/tests/lifecycle.rs`).
//! - No mark that a pod sets takes a connection out of capture (`tests/tests/hostile.rs`).
//! - What can't be read never empties the mesh: a broken file goes on saying what it last said
//!   (`a_broken_manifest_changes_nothing_and_is_reported` in `tests/tests/lifecycle.rs`), and while one has never made sense
//!   the snapshot is [partial](store::snapshot::Snapshot::is_partial), on whose word nothing left by an earlier daemon is
//!   released, and nothing is sent in plaintext where a pod of that file may be: the property test of [`route::decide`].
//! - Nobody's ServiceEntry takes the address of a pod, nor makes it unreachable:
//!   [`contested`](store::claims::contested).
//! - An exclusion that is wrong excludes nothing: tests of [`control::manifests`].
//! - An IPv4-mapped address of a connection becomes IPv4 in one place, [`canonical`](model::addr::canonical), which the
//!   address types call.
//! - Kernel and daemon agree on layouts: `ebpf-common` asserts their sizes, and [`LAYOUT`](ebpf_common::LAYOUT) is part of
//!   the path of every pin, so that another layout's pins are never adopted.
//! - Every flag of `run` has its variable, and no other code reads the environment: a test in [`config::args`]; tidy.
//!
//! # Errors
//!
//! One enum per operation, which names what was attempted, on which object, and what to do about it where something can be
//! done: [`NetnsError`](net::netns::NetnsError), [`DialError`](net::dial::DialError),
//! [`LoadError`](redirect::load::LoadError), [`EnrolError`](redirect::EnrolError), [`PodError`](pods::pod::PodError) and so
//! on. [`causes`](model::cause::causes) makes one line of an error and its causes. `anyhow` appears in [`app`] alone, where
//! errors meet a person.
//!
//! - Of one connection: [`flow`] turns it into a [`CloseReason`](model::close::CloseReason), one closed list from which log
//!   text and metric label follow; the client gets a reset.
//! - Of one pod: it is *refused*, with a reason that log and `/config_dump` tell, and tried again unless its manifest rules
//!   it out.
//! - Of a mesh source: a [`Problem`](model::problem::Problem) with its [`Origin`](model::origin::Origin), such as file and line, and the
//!   object; the rest counts.
//! - Of the start: the process ends, and what was captured before stays captured and closed.

pub mod analyze;
pub mod app;
pub mod config;
pub mod control;
pub mod explain;
pub mod flow;
pub mod hbone;
pub mod identity;
pub mod istio;
pub mod lifecycle;
pub mod metrics;
pub mod model;
pub mod net;
pub mod pods;
pub mod policy;
pub mod redirect;
pub mod route;
pub mod store;
pub mod tls;
pub mod wire;
