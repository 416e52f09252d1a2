//! PostgreSQL's messages to its clients, sorted: errors and notices separately from all other messages.
//!
//! An error's DETAIL, HINT and CONTEXT may quote the row, and PostgreSQL sends them unasked; a client can only drop them. So a
//! marker in an error does not mean that the fleet read the column, and the fleet's own output shows whether it passed it on. A
//! marker in any other message means that the fleet read the column.

/// `ErrorResponse` and `NoticeResponse`.
const COMPLAINTS: [u8; 2] = [b'E', b'N'];
/// One byte for the type, and four for the length, which includes itself.
const HEADER: usize = 5;

/// Splits what a server has sent over one connection without TLS into all other messages, and the errors and notices.
pub fn sorted(sent: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut answers, mut complaints) = (Vec::new(), Vec::new());
    let mut rest = sent;
    while let Some((kind, length)) = rest.first().zip(rest.get(1..HEADER)) {
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        // A message that was cut off has only the bytes that arrived.
        let (message, after) = rest.split_at(rest.len().min(length.max(HEADER - 1) + 1));
        let kept = if COMPLAINTS.contains(kind) { &mut complaints } else { &mut answers };
        kept.extend_from_slice(message);
        rest = after;
    }
    answers.extend_from_slice(rest);
    (answers, complaints)
}

#[test]
fn errors_are_distinguished_from_rows_wherever_the_stream_was_cut() {
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
