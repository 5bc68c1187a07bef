//! Numbers as people read them: the same on every page. `src/admin/live/page.js` has the same rules
//! for charts.

/// A number with commas between thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number that need not be whole, such as a rate: tenths below ten, whole numbers from there on.
pub(crate) fn rate(number: f64) -> String {
    match number {
        _ if number <= 0.0 => "0".into(),
        _ if number < 0.05 => "<0.1".into(),
        _ if number < 9.95 => tenths(number),
        _ => count(number),
    }
}

/// A count as a float, which metrics have.
pub(crate) fn count(number: f64) -> String {
    grouped(rounded(number))
}

/// A share in percent, with one decimal.
pub(crate) fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

/// The share of some among all, in percent; rounded down, so that less than all is never 100 %.
pub(crate) fn share(some: u64, all: u64) -> String {
    let per_mille = u128::from(some) * 1000 / u128::from(all.max(1));
    format!("{}.{} %", per_mille / 10, per_mille % 10)
}

/// A number of bytes in the unit that suits it.
pub(crate) fn bytes(mut amount: f64) -> String {
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        unit = larger;
    }
    let amount = if unit == "B" { count(amount) } else { tenths(amount) };
    format!("{amount} {unit}")
}

/// As [`bytes`], for a count that is not computed.
#[expect(clippy::cast_precision_loss, reason = "it is shown with one decimal")]
pub(crate) fn size(amount: u64) -> String {
    bytes(amount as f64)
}

/// Seconds as people write them: the two largest units.
pub(crate) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: String, small: u64, unit| match small {
        0 => large,
        _ => format!("{large} {small} {unit}"),
    };
    match () {
        () if days > 0 => two(format!("{days} d"), hours % 24, "h"),
        () if hours > 0 => two(format!("{hours} h"), minutes % 60, "min"),
        () if minutes > 0 => two(format!("{minutes} min"), seconds % 60, "s"),
        () => format!("{seconds} s"),
    }
}

/// The nearest whole number; 0 for what is negative.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast of a float ends at the bounds of the type"
)]
pub(crate) fn rounded(number: f64) -> u64 {
    number.round() as u64
}

/// With one decimal, unless it is 0.
fn tenths(number: f64) -> String {
    let text = format!("{number:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        let found = [0, 999, 1000, 12_345, 1_000_000, u64::MAX].map(grouped);
        let expected = ["0", "999", "1,000", "12,345", "1,000,000", "18,446,744,073,709,551,615"];
        assert_eq!(found, expected);
    }

    #[test]
    fn numbers_have_the_digits_that_matter() {
        assert_eq!(
            [0.0, 0.04, 0.05, 5.0, 9.94, 9.96, 57.3, 1_234_567.8].map(rate),
            ["0", "<0.1", "0.1", "5", "9.9", "10", "57", "1,234,568"]
        );
        assert_eq!(
            [0.0, 1023.0, 1536.0, 5.0 * 1024.0 * 1024.0 * 1024.0].map(bytes),
            ["0 B", "1,023 B", "1.5 KiB", "5 GiB"]
        );
        assert_eq!(
            [0, 1023, 1024, 212_992, 8 << 20, 3 << 29, 1 << 40].map(size),
            ["0 B", "1,023 B", "1 KiB", "208 KiB", "8 MiB", "1.5 GiB", "1 TiB"]
        );
        assert_eq!(
            [59, 60, 61, 7260, 90_000, 86_400].map(duration),
            ["59 s", "1 min", "1 min 1 s", "2 h 1 min", "1 d 1 h", "1 d"]
        );
        assert_eq!(percent(0.123_45), "12.3 %");
        assert_eq!([share(999_999, 1_000_000), share(0, 0)], ["99.9 %", "0.0 %"]);
    }
}
