//! Numbers in few characters.

/// Three digits and a prefix: `0`, `0.5`, `12`, `1.23k`, `45.6M`, `789G`. Never longer than five characters.
pub(super) fn short(value: f64) -> String {
    if value < 0.05 {
        return "0".to_owned();
    }
    if value < 9.95 {
        let text = format!("{value:.1}");
        return text.strip_suffix(".0").unwrap_or(&text).to_owned();
    }
    let (mut value, mut prefixes) = (value, ["", "k", "M", "G", "T", "P"].iter());
    let mut prefix = prefixes.next().copied().unwrap_or_default();
    // What would be rounded to 1000 has the next prefix.
    while value >= 999.5 {
        let Some(next) = prefixes.next() else { return format!("{value:.0e}") };
        (value, prefix) = (value / 1000.0, next);
    }
    let digits = match value {
        _ if prefix.is_empty() => 0,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{prefix}")
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn three_digits_and_a_prefix() {
        for (value, text) in [
            (0.0, "0"),
            (0.04, "0"),
            (0.5, "0.5"),
            (1.0, "1"),
            (9.94, "9.9"),
            (9.96, "10"),
            (12.3, "12"),
            (999.4, "999"),
            (999.5, "1.00k"),
            (1234.0, "1.23k"),
            (9996.0, "10.0k"),
            (12_345.0, "12.3k"),
            (99_960.0, "100k"),
            (999_499.0, "999k"),
            (999_500.0, "1.00M"),
            (1.15e9, "1.15G"),
            (4.0e11, "400G"),
            (1.0e15, "1.00P"),
            (1.0e19, "1e4"),
        ] {
            assert_eq!(short(value), text, "{value}");
            assert!(short(value).len() <= 5);
        }
    }
}
