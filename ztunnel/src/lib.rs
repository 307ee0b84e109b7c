//! The node daemon of a mesh without sidecars and without iptables: BPF programs steer the TCP connections of labelled pods to
//! the daemon, and the daemon carries each connection on.
//!
//! `ARCHITECTURE.md` in the root of the repository has the folders by layer, the way of a connection, the owners of state, the
//! invariants with their tests, and the reasons. The first types to look at:
//!
//! | layer | folder | first types |
//! |---|---|---|
//! | L0 | [`model`] | [`OrigDst`](model::addr::OrigDst), [`PeerAddr`](model::addr::PeerAddr), [`Workload`](model::workload::Workload), [`CloseReason`](model::close::CloseReason) |
//! | L0 | [`lifecycle`] | [`TaskSet`](lifecycle::tasks::TaskSet), the signal to [drain](lifecycle::drain) |
//! | L1 | [`store`] | [`Snapshot`](store::snapshot::Snapshot), [changes](store::change), [`Publisher`](store::publish::Publisher), [`Reader`](store::publish::Reader) |
//! | L1 | [`wire`] | the CONNECT request and its headers, both ways |
//! | L2 | [`route`] | [`decide::outbound`](route::decide::outbound), [`target`](route::target::target) |
//! | L2 | [`policy`] | [`PodPolicies`](policy::PodPolicies), [`Permit`](policy::Permit) |
//! | L2 | [`istio`] | messages and services of Istio's control plane |
//! | L3 | [`net`] | [`Acceptor`](net::listen::Acceptor), [`Dialer`](net::dial::Dialer), [`copy::both`](net::copy::both), [`Netns::enter`](net::netns::Netns::enter), [`Budget`](net::memory::Budget) |
//! | L3 | [`metrics`] | [`Traffic`](metrics::traffic::Traffic) |
//! | L3 | [`explain`], [`analyze`] | the same functions, asked by a person |
//! | L4 | [`redirect`] | [`Controller`](redirect::Controller), which owns BPF programs, maps, pins, rules and routes |
//! | L4 | [`identity`] | [`CertCache`](identity::cache::CertCache), [`CertHandle`](identity::handle::CertHandle) |
//! | L5 | [`tls`] | [`Endpoint`](tls::Endpoint) |
//! | L6 | [`hbone`] | [`Pool`](hbone::pool::Pool), [`server::serve`](hbone::server::serve), [`relay::both`](hbone::relay::both) |
//! | L6 | [`control`] | [`MeshSource`](control::source::MeshSource), [`MeshFolder`](control::file::MeshFolder), [`Joiner`](control::join::Joiner) |
//! | L7 | [`flow`] | [`outbound::serve`](flow::outbound::serve), [`inbound::serve`](flow::inbound::serve), [`plaintext::serve`](flow::plaintext::serve), [`Recorded`](flow::record::Recorded) |
//! | L8 | [`plane`] | [`serve`](plane::serve::serve), [`Catalogue`](plane::catalogue::Catalogue), [`Session`](plane::session::Session), [`Translator`](plane::translate::Translator) |
//! | L8 | [`pods`] | [`Manager`](pods::manager::Manager), [`Kernel`](pods::kernel::Kernel), [`LocalSource`](pods::local::LocalSource) |
//! | L9 | [`cni`] | [`plugin::run`](cni::plugin::run), [`Server`](cni::serve::Server), [`Installer`](cni::install::Installer) |
//! | L9 | [`config`] | [`RunArgs`](config::RunArgs) |
//! | L10 | [`app`] | [`build`](app::build), which puts everything together |

pub mod analyze;
pub mod app;
pub mod cni;
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
pub mod plane;
pub mod pods;
pub mod policy;
pub mod redirect;
pub mod route;
pub mod store;
pub mod tls;
pub mod wire;
