//! The body of a message that died: kept whole up to a limit that bounds the memory of the processes that copy it, and cut
//! beyond.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// Longest body that is kept whole, in bytes: 64 times as long as a broker set up as documented accepts.
pub const WHOLE_MAX: usize = 16 * 1024 * 1024;
/// How much of a longer body is kept, in bytes.
const CUT_TO: usize = 64 * 1024;

/// The part of a body that is kept, and a description of the whole body if it was cut.
pub(super) fn kept(mut body: Vec<u8>) -> (Vec<u8>, Option<String>) {
    if body.len() <= WHOLE_MAX {
        return (body, None);
    }
    let cut = described(&body);
    body.truncate(CUT_TO);
    body.shrink_to_fit();
    (body, Some(cut))
}

/// The same of a borrowed body, of which no more is copied than is kept.
pub(super) fn copied(body: &[u8]) -> (Vec<u8>, Option<String>) {
    if body.len() <= WHOLE_MAX { (body.to_vec(), None) } else { (body[..CUT_TO].to_vec(), Some(described(body))) }
}

fn described(body: &[u8]) -> String {
    let mut digest = String::with_capacity(64);
    for byte in Sha256::digest(body) {
        // Writing to a string cannot fail.
        let _ = write!(digest, "{byte:02x}");
    }
    format!("{} bytes, SHA-256 {digest}", body.len())
}

/// The cause, with what was cut.
pub(super) fn with_cut(cause: String, cut: Option<&str>) -> String {
    match cut {
        Some(cut) => format!("{cause}; only the first {CUT_TO} bytes of its body are kept: it had {cut}"),
        None => cause,
    }
}
