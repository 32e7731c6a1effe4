use std::fs;

use tempfile::TempDir;

use super::*;

/// A classic pcap whose header says that `snap` bytes of each frame were kept, with frames as they were and what was kept.
fn pcap(snap: u32, frames: &[(u32, &[u8])]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, snap, 1] {
        file.extend(u32::to_le_bytes(word));
    }
    for (original, kept) in frames {
        for word in [1, 2, u32::try_from(kept.len()).unwrap(), *original] {
            file.extend(word.to_le_bytes());
        }
        file.extend(*kept);
    }
    file
}

/// What is found in a file of these bytes.
fn found(bytes: &[u8], number: u64) -> Result<Recorded, String> {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, bytes).unwrap();
    frame(&file, number).map_err(|error| format!("{error:#}"))
}

#[test]
fn a_whole_frame_is_found_in_a_pcap_of_cut_ones() {
    let file = pcap(96, &[(1514, &[1; 96]), (60, &[2; 60])]);
    assert_eq!(found(&file, 2).unwrap().frame, [2; 60]);
    let said = "the frame had 1514 bytes, of which 96 were captured; capture whole frames (tcpdump -s 0)";
    assert_eq!(found(&file, 1).unwrap_err(), said);
    // Some write that no limit is known.
    assert_eq!(found(&pcap(0, &[(60, &[3; 60])]), 1).unwrap().frame, [3; 60]);
}
