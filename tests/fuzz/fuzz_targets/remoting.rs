#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rocketbridge_remoting::fuzzing::fuzz(data));
