//! Brings the datapath to the desired state: [`plan`] compares, [`apply`] writes.
//!
//! **Invariant:** [`apply`] is the only caller of the methods that change bindings. A start, a repair and a command
//! differ only in how much of the state they compare.
//!
//! # The order of writes
//!
//! A binding is two map entries, and packets pass while they are written. So:
//!
//! 1. What has to go goes first, inbound halves before outbound ones: nothing new reaches a VM that could not answer
//!    any more. An entry with another value counts as one to remove and one to insert: it is never overwritten.
//! 2. [`Dataplane::quiesce`]. A program on another CPU may still read an entry that was removed, and the kernel may
//!    give its memory to the next one that is inserted: the packet would go to a VM that has nothing to do with it.
//!    The wait also makes a detach true: when it is acknowledged, no packet that saw the binding is under way.
//! 3. What is missing is inserted, outbound halves before inbound ones: from the first packet that reaches the VM on,
//!    its answer leaves with the right source. Until then the VM may open connections, and their answers take longer
//!    to come than the second write.
//!
//! So at every instant each half that stands is desired or was there before; a half never names another's VM. A crash
//! in between leaves halves, which the next start compares like everything else.

mod patrol;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use crate::dataplane::{Binding, Dataplane, Half};
pub use patrol::Patrol;

/// One write to the datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`Dataplane::remove`].
    Remove(Half),
    /// [`Dataplane::quiesce`].
    Quiesce,
    /// [`Dataplane::insert`].
    Insert(Half),
}

/// The writes that turn `actual` into `desired`, in an order in which no packet goes astray.
#[must_use]
pub fn plan(desired: &BTreeSet<Half>, actual: &BTreeSet<Half>) -> Vec<Step> {
    // Inbound halves sort before outbound ones.
    let mut steps: Vec<Step> = actual.difference(desired).copied().map(Step::Remove).collect();
    if !steps.is_empty() {
        steps.push(Step::Quiesce);
    }
    let missing: Vec<Half> = desired.difference(actual).copied().collect();
    steps.extend(missing.into_iter().rev().map(Step::Insert));
    steps
}

/// Carries the steps out, in order.
///
/// # Errors
/// At the first step that fails; those before it are done.
pub fn apply(dataplane: &mut dyn Dataplane, steps: &[Step]) -> anyhow::Result<()> {
    let applied = steps.iter().try_for_each(|step| match *step {
        Step::Remove(half) => dataplane.remove(half),
        Step::Quiesce => dataplane.quiesce(),
        Step::Insert(half) => dataplane.insert(half),
    });
    applied.inspect_err(|_| {
        // Whoever tries again may only have something to insert. What failed first is what has to be told.
        let _ = dataplane.quiesce();
    })
}

/// Removes everything from the datapath that is not `desired`, and answers what is left.
///
/// # Errors
/// If the datapath cannot be written.
pub fn remove_others(
    dataplane: &mut dyn Dataplane,
    desired: impl IntoIterator<Item = Binding>,
    actual: &BTreeSet<Half>,
) -> anyhow::Result<BTreeSet<Half>> {
    let left = actual.intersection(&halves(desired)).copied().collect();
    apply(dataplane, &plan(&left, actual))?;
    Ok(left)
}

/// Brings everything in the datapath to `desired`, and says what it took.
///
/// # Errors
/// If the datapath cannot be read or written.
pub fn everything(
    dataplane: &mut dyn Dataplane,
    desired: impl IntoIterator<Item = Binding>,
) -> anyhow::Result<Vec<Step>> {
    let actual = dataplane.halves()?.into_iter().collect();
    everything_from(dataplane, desired, &actual)
}

/// [`everything`], for who knows already what stands in the datapath.
///
/// # Errors
/// If the datapath cannot be written.
pub fn everything_from(
    dataplane: &mut dyn Dataplane,
    desired: impl IntoIterator<Item = Binding>,
    actual: &BTreeSet<Half>,
) -> anyhow::Result<Vec<Step>> {
    let steps = plan(&halves(desired), actual);
    apply(dataplane, &steps)?;
    Ok(steps)
}

/// Brings what one change touches to its desired state: the addresses of `before` and `after`, where `after` is
/// what is to stand. A large change is done in parts, so that a VM which gets another address is without one for a moment
/// only, and not for as long as all of it takes.
///
/// # Errors
/// If the datapath cannot be read or written.
pub fn change(
    dataplane: &mut dyn Dataplane,
    before: Vec<Binding>,
    after: Vec<Binding>,
) -> anyhow::Result<()> {
    for part in parts(before, after) {
        let mut actual = BTreeSet::new();
        for &Binding { public_ip, tenant, private_ip, .. } in part.before.iter().chain(&part.after) {
            actual.extend(dataplane.inbound(public_ip)?.map(Half::Inbound));
            actual.extend(dataplane.outbound(tenant, private_ip)?.map(Half::Outbound));
        }
        apply(dataplane, &plan(&halves(part.after), &actual))?;
    }
    Ok(())
}

/// A change, or as much of it as is done at once.
#[derive(Debug, Default)]
struct Part {
    before: Vec<Binding>,
    after: Vec<Binding>,
}

/// How many bindings are changed at once.
const PART: usize = 4096;

/// Cuts a change into parts that have no address in common. A private address is in one part anyway; where a public one
/// would be in two, it is all one part.
fn parts(before: Vec<Binding>, after: Vec<Binding>) -> Vec<Part> {
    if before.len() + after.len() <= PART {
        return vec![Part { before, after }];
    }
    let mut by_private = BTreeMap::<(u32, Ipv4Addr), Part>::new();
    for binding in &before {
        by_private.entry((binding.tenant, binding.private_ip)).or_default().before.push(*binding);
    }
    for binding in &after {
        by_private.entry((binding.tenant, binding.private_ip)).or_default().after.push(*binding);
    }
    let (mut parts, mut places) = (vec![Part::default()], HashMap::new());
    for one in by_private.into_values() {
        if parts.last().is_some_and(|part| part.before.len() + part.after.len() >= PART) {
            parts.push(Part::default());
        }
        for binding in one.before.iter().chain(&one.after) {
            if *places.entry(binding.public_ip).or_insert(parts.len()) != parts.len() {
                return vec![Part { before, after }];
            }
        }
        if let Some(part) = parts.last_mut() {
            part.before.extend(one.before);
            part.after.extend(one.after);
        }
    }
    parts
}

fn halves(bindings: impl IntoIterator<Item = Binding>) -> BTreeSet<Half> {
    bindings.into_iter().flat_map(|binding| [Half::Inbound(binding), Half::Outbound(binding)]).collect()
}
