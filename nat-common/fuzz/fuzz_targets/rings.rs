//! libFuzzer's way to [`nat_common_fuzz::rings`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nat_common_fuzz::rings(data));
