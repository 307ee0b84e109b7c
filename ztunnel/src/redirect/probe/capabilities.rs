//! The capabilities of this process.

/// The effective set. The bits have the numbers of linux/capability.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capabilities(pub(super) u64);

impl Capabilities {
    pub(super) const NET_ADMIN: u32 = 12;
    pub(super) const NET_RAW: u32 = 13;
    pub(super) const SYS_CHROOT: u32 = 18;
    pub(super) const SYS_PTRACE: u32 = 19;
    pub(super) const SYS_ADMIN: u32 = 21;
    pub(super) const BPF: u32 = 39;

    /// The set of this process. It is empty if /proc can't be read: the later probes then show the real state.
    pub(super) fn of_this_process() -> Self {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        Self::parse(&status).unwrap_or(Self(0))
    }

    pub(super) fn parse(status: &str) -> Option<Self> {
        let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(digits.trim(), 16).ok().map(Self)
    }

    pub(super) fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    pub(super) fn may_load_bpf(self) -> bool {
        self.has(Self::BPF) || self.has(Self::SYS_ADMIN)
    }
}
