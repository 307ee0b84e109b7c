//! Counts verdicts, by pod.

use ebpf_common::Verdict;

use crate::maps::VERDICTS;

/// Adds one to a verdict of a pod. The daemon makes the pod's entry before it enrols it, so counting can't fail for want
/// of room; an unknown pod is not counted.
///
/// The slot is this CPU's own. A connect hook preempted between read and write by another one of the same pod and
/// verdict loses a count; the target has no atomic add that this compiler would emit.
#[inline(always)]
pub(crate) fn count(cookie: u64, verdict: Verdict) {
    if let Some(counts) = VERDICTS.get_ptr_mut(cookie) {
        // SAFETY: the pointer is to a live map value, and every verdict is an index below 16.
        unsafe {
            let slot = (&raw mut (*counts).by_verdict).cast::<u64>().add(verdict as usize);
            *slot = (*slot).wrapping_add(1);
        }
    }
}
