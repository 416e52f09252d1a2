//! Bars of Unicode blocks for charts in a terminal, accurate to an eighth of a cell. A count above 0 always shows.

const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// A bar for `count`, where `most` fills all `cells` columns.
#[must_use]
pub fn bar(count: i64, most: i64, cells: usize) -> String {
    let (count, most) = (u128::try_from(count).unwrap_or(0), u128::try_from(most).unwrap_or(0));
    if count == 0 || most == 0 || cells == 0 {
        return String::new();
    }
    let full = cells as u128 * 8;
    // Both fit into 64 bits, so the product fits.
    let eighths = usize::try_from((count * full / most).clamp(1, full)).unwrap_or(1);
    let rest = (eighths % 8).checked_sub(1).and_then(|at| EIGHTHS.get(at));
    "█".repeat(eighths / 8).chars().chain(rest.copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn a_bar_is_as_long_as_its_part_of_the_most() {
        assert_eq!(bar(8, 8, 4), "████");
        assert_eq!(bar(4, 8, 4), "██");
        assert_eq!(bar(5, 8, 1), "▋");
        assert_eq!(bar(1, 1_000_000, 20), "▏", "a count above 0 shows");
        assert_eq!(bar(i64::MAX, i64::MAX, 3), "███");
        for nothing in [bar(0, 8, 4), bar(-1, 8, 4), bar(3, 0, 4), bar(3, 3, 0)] {
            assert_eq!(nothing, "");
        }
    }
}
