//! Events of Kubernetes, as far as it limits them.

/// The API server takes no longer note.
const LONGEST: usize = 1024;

/// What of a text fits into an Event.
#[must_use]
pub fn note(mut text: String) -> String {
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST - '…'.len_utf8()));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_letters() {
        let note = note("ü".repeat(1000));
        assert!(note.len() <= LONGEST && note.ends_with("ü…"), "{}", note.len());
    }
}
