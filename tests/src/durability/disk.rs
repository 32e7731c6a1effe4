//! A disk that loses what was not synced.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::Event;

/// What a disk writes at once.
const SECTOR: usize = 512;

/// Files, and what was done to each since its last sync.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    safe: BTreeMap<String, Vec<u8>>,
    pending: Vec<Event>,
}

impl Disk {
    /// Something happens.
    pub fn play(&mut self, event: &Event) {
        match event {
            Event::Said(_) => {}
            Event::Sync { file } => {
                // An empty name is the directory: with it what was removed is gone, and names are what they are.
                let (done, rest) =
                    std::mem::take(&mut self.pending).into_iter().partition(|event| match event {
                        Event::Remove { .. } | Event::Rename { .. } => file.is_empty(),
                        Event::Write { file: other, .. } | Event::Truncate { file: other, .. } => {
                            other == file
                        }
                        _ => false,
                    });
                self.pending = rest;
                let done: Vec<Event> = done;
                for event in &done {
                    carry_out(&mut self.safe, event, None);
                }
            }
            other => self.pending.push(other.clone()),
        }
    }

    /// The power goes: of what was not synced any part may have reached the disk, sector by sector. `chance` says which.
    ///
    /// # Errors
    /// When the files cannot be written to `directory`.
    pub fn cut(&self, directory: &Path, chance: &mut dyn FnMut() -> bool) -> Result<()> {
        let mut left = self.safe.clone();
        for event in &self.pending {
            match event {
                Event::Write { .. } => carry_out(&mut left, event, Some(chance)),
                other if chance() => carry_out(&mut left, other, None),
                _ => {}
            }
        }
        for (name, content) in left {
            fs::write(directory.join(name), content)?;
        }
        Ok(())
    }
}

fn carry_out(
    files: &mut BTreeMap<String, Vec<u8>>,
    event: &Event,
    mut chance: Option<&mut dyn FnMut() -> bool>,
) {
    match event {
        Event::Write { file, offset, bytes } => {
            let content = files.entry(file.clone()).or_default();
            let offset = usize::try_from(*offset).unwrap_or(usize::MAX);
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                if chance.as_mut().is_none_or(|chance| chance()) {
                    let from = offset + index * SECTOR;
                    content.resize(content.len().max(from + sector.len()), 0);
                    content[from..from + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Event::Truncate { file, length } => {
            let length = usize::try_from(*length).unwrap_or(usize::MAX);
            files.entry(file.clone()).or_default().resize(length, 0);
        }
        Event::Remove { file } => drop(files.remove(file)),
        Event::Rename { from, to } => {
            if let Some(content) = files.remove(from) {
                files.insert(to.clone(), content);
            }
        }
        Event::Sync { .. } | Event::Said(_) => {}
    }
}
