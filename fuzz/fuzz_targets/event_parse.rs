#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kyhan_fuzz::event_parse(input));
