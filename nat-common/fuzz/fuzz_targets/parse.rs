//! libFuzzer's way to [`nat_common_fuzz::parse`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nat_common_fuzz::parse(data));
