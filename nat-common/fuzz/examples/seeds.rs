//! Writes the fixtures' packets where the fuzzers begin.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let seeds = nat_common_fuzz::seeds();
    for (target, name, bytes) in &seeds {
        let directory = corpus.join(target);
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(name.replace(|c: char| !c.is_ascii_alphanumeric(), "-")), bytes)?;
    }
    println!("{} seeds in {}", seeds.len(), corpus.display());
    Ok(())
}
