#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rocketbridge_stomp::fuzzing::fuzz(data));
