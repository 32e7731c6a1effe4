//! The XDP program's log, on its way into the daemon's. The program writes numbers; here they get their names.

use log::{Log, Metadata, Record, logger};
use nat_common::verdict::Reject;

use super::interfaces;

/// What lines of the program appear under.
const TARGET: &str = "eipnat::xdp";

/// Hands lines on to the process's logger.
#[derive(Debug)]
pub struct Names;

impl Log for Names {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        logger().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let line = record.args().to_string();
        let line = with_names(&line, interfaces::name).unwrap_or(line);
        logger().log(
            &Record::builder().level(record.level()).target(TARGET).args(format_args!("{line}")).build(),
        );
    }

    fn flush(&self) {
        logger().flush();
    }
}

/// `drop reason 13 interface 4: A -> B` as `drop eip_unbound on up0: A -> B`; `None` for any other line.
fn with_names(line: &str, interface_name: impl Fn(u32) -> Option<String>) -> Option<String> {
    let (numbers, addresses) = line.strip_prefix("drop reason ")?.split_once(": ")?;
    let (reason, ifindex) = numbers.split_once(" interface ")?;
    let reason = Reject::ALL.get(reason.parse::<usize>().ok()?)?.name();
    let interface = interface_name(ifindex.parse().ok()?).unwrap_or_else(|| format!("interface {ifindex}"));
    Some(format!("drop {reason} on {interface}: {addresses}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_get_names() {
        let name = |ifindex| (ifindex == 4).then(|| "up0".to_owned());
        let reason = Reject::EipUnbound as u8;
        let line = |ifindex| format!("drop reason {reason} interface {ifindex}: 192.0.2.1 -> 203.0.113.9");
        assert_eq!(
            with_names(&line(4), name).as_deref(),
            Some("drop eip_unbound on up0: 192.0.2.1 -> 203.0.113.9")
        );
        assert_eq!(
            with_names(&line(5), name).as_deref(),
            Some("drop eip_unbound on interface 5: 192.0.2.1 -> 203.0.113.9")
        );
        for other in
            ["bpf_fib_lookup: 9", "drop reason 255 interface 4: a -> b", "drop reason x interface 4: a", ""]
        {
            assert_eq!(with_names(other, name), None);
        }
    }
}
