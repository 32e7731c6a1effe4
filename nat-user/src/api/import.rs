//! The lines of an import.

use crate::model::Line;

/// Reads lines `eip,private_ip[,account]`; `#` begins a comment, and there is no header.
///
/// # Errors
/// At the first line that is none, with its number and what it should look like.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Line>, String> {
    let mut lines: Vec<Line> = Vec::new();
    for (number, text) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let failed = |what: String| format!("line {number}: {what}; nothing was imported");
        let text = str::from_utf8(text).map_err(|error| failed(error.to_string()))?;
        // What follows a `#` is a comment.
        let text = text.split('#').next().unwrap_or_default().trim();
        if !text.is_empty() {
            let mut line = line(number, text).map_err(failed)?;
            if let Some(before) = lines.last().filter(|before| before.account == line.account) {
                // They share one copy of the name.
                line.account.clone_from(&before.account);
            }
            lines.push(line);
        }
    }
    Ok(lines)
}

fn line(number: u64, text: &str) -> Result<Line, String> {
    const FORM: &str = "write eip,private_ip or eip,private_ip,account";
    let fields: Vec<&str> = text.split(',').map(str::trim).collect();
    let (eip, private_ip, account) = match fields[..] {
        [eip, private_ip] | [eip, private_ip, ""] => (eip, private_ip, None),
        [eip, private_ip, account] => (eip, private_ip, Some(account)),
        _ => return Err(format!("{} fields; {FORM}", fields.len())),
    };
    let address = |text: &str| text.parse().map_err(|_| format!("{text:?} is not an IPv4 address; {FORM}"));
    let account = account.map(str::parse).transpose().map_err(|error| format!("account: {error}"))?;
    Ok(Line { number, eip: address(eip)?, private_ip: address(private_ip)?, account })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_comments_and_mistakes() {
        let good =
            b"# a comment\n203.0.113.1,10.0.0.1\n\n 203.0.113.2 , 10.0.0.2 , acme\r\n203.0.113.3,10.0.0.3, # web\n";
        let lines = parse(good).unwrap();
        let seen: Vec<_> =
            lines.iter().map(|line| (line.number, line.eip.octets()[3], line.account.is_some())).collect();
        assert_eq!(seen, [(2, 1, false), (4, 2, true), (5, 3, false)]);
        for (bad, said) in [
            (
                "203.0.113.1\n",
                "line 1: 1 fields; write eip,private_ip or eip,private_ip,account; nothing was imported",
            ),
            (
                "203.0.113.1,10.0.0.1\neip,private_ip\n",
                "line 2: \"eip\" is not an IPv4 address; write eip,private_ip or eip,private_ip,account; nothing was imported",
            ),
            ("203.0.113.1,10.0.0.1,A_B\n", "line 1: account: \"A_B\" is not a name"),
        ] {
            let error = parse(bad.as_bytes()).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
        assert!(parse(b"203.0.113.1,\xff").unwrap_err().starts_with("line 1: "));
        assert_eq!(parse(b"").unwrap(), []);
    }
}
