//! Counts verdicts, by pod.

use ebpf_common::Verdict;

use crate::maps::VERDICTS;

/// Adds one to the count of a verdict of a pod. The daemon creates the pod's entry before it enrols the pod, so
/// counting cannot fail for lack of room; verdicts of an unknown pod are not counted.
///
/// Each CPU has its own counters. If another connect hook with the same pod and verdict preempts this one between read
/// and write, one count is lost: the target has no atomic addition that this compiler would emit.
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
