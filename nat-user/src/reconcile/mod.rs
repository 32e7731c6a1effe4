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
mod standing;
mod survey;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::mem::discriminant;
use std::net::Ipv4Addr;

use crate::dataplane::{Binding, Dataplane, Half};
use crate::model::Bindings;
pub use patrol::Patrol;
use standing::Standing;
pub use survey::Survey;

/// How many halves are inserted at a time.
const INSERTED_AT_ONCE: usize = 4096;

/// One write to the datapath. Inserts of a kind that follow each other are made at once.
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
pub fn apply(dataplane: &mut dyn Dataplane, steps: impl IntoIterator<Item = Step>) -> anyhow::Result<()> {
    let applied = apply_all(dataplane, steps);
    applied.inspect_err(|_| {
        // Whoever tries again may only have something to insert. What failed first is what has to be told.
        let _ = dataplane.quiesce();
    })
}

fn apply_all(dataplane: &mut dyn Dataplane, steps: impl IntoIterator<Item = Step>) -> anyhow::Result<()> {
    // What is inserted one after another and of a kind goes in at once.
    let mut inserts: Vec<Half> = Vec::new();
    for step in steps {
        let goes_along = match (step, inserts.last()) {
            (Step::Insert(half), Some(last)) => {
                discriminant(&half) == discriminant(last) && inserts.len() < INSERTED_AT_ONCE
            }
            _ => inserts.is_empty(),
        };
        if !goes_along {
            dataplane.insert(&inserts)?;
            inserts.clear();
        }
        match step {
            Step::Remove(half) => dataplane.remove(half)?,
            Step::Quiesce => dataplane.quiesce()?,
            Step::Insert(half) => inserts.push(half),
        }
    }
    if inserts.is_empty() { Ok(()) } else { dataplane.insert(&inserts) }
}

/// Brings everything in the datapath to `desired`.
///
/// # Errors
/// If the datapath cannot be read or written.
pub fn everything(dataplane: &mut dyn Dataplane, desired: &Bindings) -> anyhow::Result<()> {
    let mut survey = Survey::of(dataplane, desired)?;
    survey.remove_foreign(dataplane)?;
    survey.insert_missing(dataplane, desired).map(drop)
}

/// Brings what one change touches to its desired state: the addresses of `before` and `after`, where `after` is
/// what is to stand. A large change is done in parts, so that a VM which gets another address is without one for a moment
/// only, and not for as long as all of it takes.
///
/// # Errors
/// If the datapath cannot be read or written.
pub fn change(
    dataplane: &mut dyn Dataplane,
    mut before: Vec<Binding>,
    mut after: Vec<Binding>,
) -> anyhow::Result<()> {
    before.sort_unstable_by_key(place);
    after.sort_unstable_by_key(place);
    let there = Standing::at(dataplane, &before, &after)?;
    let mut from = (0, 0);
    for to in parts(&before, &after) {
        let (before, after) = (&before[from.0..to.0], &after[from.1..to.1]);
        let (desired, mut actual) = (halves(after.iter().copied()), BTreeSet::new());
        for &Binding { public_ip, tenant, private_ip, .. } in after {
            actual.extend(there.inbound(dataplane, public_ip)?.map(Half::Inbound));
            actual.extend(there.outbound(dataplane, tenant, private_ip)?.map(Half::Outbound));
        }
        for binding in before {
            let inbound = there.inbound(dataplane, binding.public_ip)?.map(Half::Inbound);
            let outbound = there.outbound(dataplane, binding.tenant, binding.private_ip)?.map(Half::Outbound);
            // Somebody else may have taken one out where it stands first, and left what goes with it.
            let gone = |half| Some(half).filter(|half| !desired.contains(half));
            actual.extend(inbound.or_else(|| gone(Half::Inbound(*binding))));
            actual.extend(outbound.or_else(|| gone(Half::Outbound(*binding))));
        }
        apply(dataplane, plan(&desired, &actual))?;
        from = to;
    }
    Ok(())
}

/// How many bindings are changed at once.
const PART: usize = 4096;

/// The public addresses of a change, sorted.
fn publics(before: &[Binding], after: &[Binding]) -> Vec<Ipv4Addr> {
    let mut publics: Vec<_> = before.iter().chain(after).map(|binding| binding.public_ip).collect();
    publics.sort_unstable();
    publics
}

/// Where a VM is.
const fn place(binding: &Binding) -> (u32, Ipv4Addr) {
    (binding.tenant, binding.private_ip)
}

/// Where a change, sorted by private addresses, is cut into parts that have no address in common: where each of them ends. A
/// private address is in one part anyway; where a public one would be in two, it is all one part.
fn parts(before: &[Binding], after: &[Binding]) -> Vec<(usize, usize)> {
    let whole = (before.len(), after.len());
    if before.len() + after.len() <= PART {
        return vec![whole];
    }
    let (mut ends, mut from, mut to) = (Vec::new(), (0, 0), (0, 0));
    let publics = publics(before, after);
    // Those that go from one private address to another.
    let repeated = publics.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| (pair[0], None));
    let mut parts_of: HashMap<Ipv4Addr, Option<usize>> = repeated.collect();
    while to != whole {
        let next = before.get(to.0).into_iter().chain(after.get(to.1)).map(place).min();
        let of_next =
            |rest: &[Binding]| rest.iter().take_while(|binding| Some(place(binding)) == next).count();
        let end = (to.0 + of_next(&before[to.0..]), to.1 + of_next(&after[to.1..]));
        for binding in before[to.0..end.0].iter().chain(&after[to.1..end.1]) {
            let part = parts_of.get_mut(&binding.public_ip).map(|part| *part.get_or_insert(ends.len()));
            if part.is_some_and(|part| part != ends.len()) {
                return vec![whole];
            }
        }
        to = end;
        if to.0 - from.0 + to.1 - from.1 >= PART {
            ends.push(to);
            from = to;
        }
    }
    if from != whole {
        ends.push(whole);
    }
    ends
}

fn halves(bindings: impl IntoIterator<Item = Binding>) -> BTreeSet<Half> {
    bindings.into_iter().flat_map(|binding| [Half::Inbound(binding), Half::Outbound(binding)]).collect()
}
