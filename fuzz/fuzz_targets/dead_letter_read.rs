#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kyhan_fuzz::dead_letter_read(input));
