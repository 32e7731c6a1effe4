//! Commits changes to a store, one after another, and says of each when it is on disk. For tests of power cuts.

use std::env;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use tests::durability;

fn main() -> Result<()> {
    let usage = "usage: eipnat-store-writer DIRECTORY COMMITS";
    let [directory, commits] = env::args().skip(1).collect::<Vec<_>>().try_into().ok().context(usage)?;
    let mut said = std::io::stdout().lock();
    durability::write(Path::new(&directory), commits.parse().context(usage)?, |revision, fingerprint| {
        // One write(2), which stands in the trace behind everything that came before it.
        Ok(said.write_all(format!("{revision} {fingerprint}\n").as_bytes())?)
    })
}
