#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rocketbridge_core::fuzzing::fuzz_filter(data));
