//! What PostgreSQL says to its clients, sorted: errors and notices apart from everything else.
//!
//! An error's DETAIL, HINT and CONTEXT may quote the row that it is about, and PostgreSQL sends them unasked; a client can only drop
//! them. So a marker in an error is no question that the fleet asked, and what becomes of it is seen in all that the fleet says. In
//! every other message it would be: a column that was read.

/// `ErrorResponse` and `NoticeResponse`.
const COMPLAINTS: [u8; 2] = [b'E', b'N'];
/// A byte for the type, four for the length, which counts itself.
const HEADER: usize = 5;

/// Everything else, and the errors and notices, of what a server has sent over one connection without TLS.
pub fn sorted(sent: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut answers, mut complaints) = (Vec::new(), Vec::new());
    let mut rest = sent;
    while let Some((kind, length)) = rest.first().zip(rest.get(1..HEADER)) {
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        // One that was cut off is as long as what is there of it.
        let (message, after) = rest.split_at(rest.len().min(length.max(HEADER - 1) + 1));
        let kept = if COMPLAINTS.contains(kind) { &mut complaints } else { &mut answers };
        kept.extend_from_slice(message);
        rest = after;
    }
    answers.extend_from_slice(rest);
    (answers, complaints)
}

#[test]
fn errors_are_told_from_rows_wherever_the_stream_was_cut() {
    let message = |kind: u8, said: &str| {
        let length = u32::try_from(said.len() + 4).expect("a length").to_be_bytes();
        [&[kind][..], &length, said.as_bytes()].concat()
    };
    let sent = [message(b'D', "a row"), message(b'E', "an error"), message(b'N', "a warning"), message(b'D', "more")].concat();
    for cut in 0..=sent.len() {
        let (answers, complaints) = sorted(&sent[..cut]);
        assert_eq!(answers.len() + complaints.len(), cut);
    }
    let (answers, complaints) = sorted(&sent);
    assert_eq!(answers, [message(b'D', "a row"), message(b'D', "more")].concat());
    assert_eq!(complaints, [message(b'E', "an error"), message(b'N', "a warning")].concat());
}
