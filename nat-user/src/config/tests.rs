use std::ffi::OsString;
use std::fmt::Write as _;

use super::*;
use crate::cli;

/// Every key that there is, and an interface that every machine has.
const GOOD: &str = r#"
[node]
name = "nat-1"
public_ip = "192.0.2.1"
[datapath]
uplinks = ["lo"]
downlinks = ["lo"]
mode = "auto"
max_bindings = 1048576
pin_path = "/sys/fs/bpf/eipnat"
[store]
path = "/var/lib/eipnat"
[api]
socket = "/run/eipnat/api.sock"
group = "root"
[metrics]
listen = "127.0.0.1:9464"
series = "all"
active_window = "5m"
[usage]
interval = "1h"
retention = "90d"
[[pool]]
name = "default"
cidrs = ["203.0.113.128/25", "203.0.113.0/25"]
reserve = ["203.0.113.1"]
reuse_delay = "60s"
[[pool]]
name = "other"
cidrs = ["198.51.100.0/24"]
"#;

/// What to replace in [`GOOD`], by what, and the error that it makes.
const MISTAKES: &[(&str, &str, &str)] = &[
    // Shape.
    (
        "[node]",
        "\n[node\n",
        "line 3: not TOML: unclosed table, expected `]`; see https://toml.io for how it is written",
    ),
    (
        "[node]",
        "[node]\nname = \"twice\"",
        "line 4: not TOML: duplicate key; see https://toml.io for how it is written",
    ),
    (
        "uplinks =",
        "uplink =",
        "datapath.uplink: unknown key; correct or remove it \
         (known here: uplinks, downlinks, mode, max_bindings, pin_path)",
    ),
    (
        "[node]",
        "[nodes]",
        "nodes: unknown key; correct or remove it \
         (known here: [node], [datapath], [slow_path], [store], [api], [metrics], [usage], [quota], [[account]], [[pool]])",
    ),
    (
        r#"name = "other""#,
        "name = \"other\"\nsize = 3",
        "pool[1].size: unknown key; correct or remove it (known here: name, cidrs, reserve, reuse_delay)",
    ),
    (
        r#"name = "nat-1""#,
        "name = 1",
        r#"node.name: wrong type: invalid type: integer `1`, expected a string; write it as in name = "nat-1""#,
    ),
    (
        r#"uplinks = ["lo"]"#,
        r#"uplinks = "lo""#,
        r#"datapath.uplinks: wrong type: invalid type: string "lo", expected an array; write it as in uplinks = ["up0"]"#,
    ),
    (
        r#"reserve = ["203.0.113.1"]"#,
        "reserve = [1]",
        r#"pool[0].reserve[0]: wrong type: invalid type: integer `1`, expected a string; write it as in reserve = ["203.0.113.1"]"#,
    ),
    (
        "1048576",
        r#""many""#,
        r#"datapath.max_bindings: wrong type: invalid type: string "many", expected an integer; write it as in max_bindings = 1048576"#,
    ),
    (
        "[store]\npath = \"/var/lib/eipnat\"",
        "[[store]]",
        "store[0]: wrong type: invalid type: table, expected a string; begin the section with a line [store]",
    ),
    // Names.
    (
        r#"name = "nat-1""#,
        r#"name = "Nat_1""#,
        "node.name: \"Nat_1\" is not a name (1 to 63 of a-z 0-9 - . that begin and end with a letter or digit, \
         and not an IP address); choose another",
    ),
    (
        r#"name = "other""#,
        r#"name = "10.0.0.1""#,
        "pool[1].name: \"10.0.0.1\" is not a name (1 to 63 of a-z 0-9 - . that begin and end with a letter or digit, \
         and not an IP address); choose another",
    ),
    (r#"name = "other""#, "", r#"pool[1].name: missing; name the pool, as in name = "default""#),
    (
        r#"name = "other""#,
        r#"name = "default""#,
        r#"pool[1].name: a second pool "default"; give each pool its own name"#,
    ),
    // Interfaces.
    (
        r#"uplinks = ["lo"]"#,
        r#"uplinks = ["nope0"]"#,
        r#"datapath.uplinks: there is no interface "nope0"; ip link shows those of this machine"#,
    ),
    (
        r#"downlinks = ["lo"]"#,
        r#"downlinks = [""]"#,
        r#"datapath.downlinks: there is no interface ""; ip link shows those of this machine"#,
    ),
    (
        r#"downlinks = ["lo"]"#,
        r#"downlinks = ["lo", "lo"]"#,
        r#"datapath.downlinks: "lo" is listed twice; list it once"#,
    ),
    (
        r#"uplinks = ["lo"]"#,
        "",
        "datapath.uplinks: missing; name at least one interface that faces the internet",
    ),
    (
        r#"downlinks = ["lo"]"#,
        "downlinks = []",
        "datapath.downlinks: missing; name at least one interface that faces the VMs",
    ),
    // The rest of the datapath.
    (
        "[store]",
        "[slow_path]\nrate = 0\n[store]",
        "slow_path.rate: 0 is out of range; write packets a second, from 1 to 100000",
    ),
    (
        "[store]",
        "[slow_path]\ncpu = -1\n[store]",
        "slow_path.cpu: -1 is no CPU; write the number of one, as in /proc/cpuinfo, or leave the key out",
    ),
    (r#""auto""#, r#""fast""#, r#"datapath.mode: "fast" is not a mode; write "auto", "native" or "generic""#),
    ("1048576", "0", "datapath.max_bindings: 0 is out of range; write a number from 1 to 16777216"),
    (
        "1048576",
        "16777217",
        "datapath.max_bindings: 16777217 is out of range; write a number from 1 to 16777216",
    ),
    ("1048576", "-1", "datapath.max_bindings: -1 is out of range; write a number from 1 to 16777216"),
    (
        "/sys/fs/bpf/eipnat",
        "bpf/eipnat",
        r#"datapath.pin_path: "bpf/eipnat" is not an absolute path; write it from the root, as in "/sys/fs/bpf/eipnat""#,
    ),
    (
        "192.0.2.1",
        "192.0.2",
        r#"node.public_ip: "192.0.2" is not an IPv4 address; write it as in "203.0.113.1""#,
    ),
    (
        "192.0.2.1",
        "127.0.0.1",
        "node.public_ip: 127.0.0.1 is in 127.0.0.0/8 (loopback), which is never a node's; write one of this node's",
    ),
    (
        "192.0.2.1",
        "203.0.113.2",
        r#"node.public_ip: 203.0.113.2 is in pool "default", where it may become a VM's; add it to the pool's reserve"#,
    ),
    // Paths and sockets.
    (
        "/var/lib/eipnat",
        "state",
        r#"store.path: "state" is not an absolute path; write it from the root, as in "/var/lib/eipnat""#,
    ),
    (
        "/run/eipnat/api.sock",
        "api.sock",
        r#"api.socket: "api.sock" is not an absolute path; write it from the root, as in "/run/eipnat/api.sock""#,
    ),
    (
        r#"group = "root""#,
        r#"group = "no-such-group""#,
        r#"api.group: there is no group "no-such-group"; make it with groupadd --system no-such-group, or name another"#,
    ),
    (
        "127.0.0.1:9464",
        "localhost",
        r#"metrics.listen: "localhost" is not an IP address and port; write it as in "127.0.0.1:9464""#,
    ),
    (
        r#"series = "all""#,
        r#"series = "some""#,
        r#"metrics.series: "some" is no choice of series; write "all", "active", "account" or "none""#,
    ),
    (
        r#"active_window = "5m""#,
        r#"active_window = "2d""#,
        r#"metrics.active_window: "2d" is not a duration up to 1day; write it as in "60s", "5m" or "1h""#,
    ),
    (
        r#"interval = "1h""#,
        r#"interval = "7m""#,
        r#"usage.interval: 7m does not divide a day into whole parts of a minute or more; write it as in "1h""#,
    ),
    (
        r#"retention = "90d""#,
        r#"retention = "0s""#,
        r#"usage.retention: "0s" is not a duration up to 10years; write it as in "60s", "5m" or "1h""#,
    ),
    // Pools.
    (
        "198.51.100.0/24",
        "198.51.100.0/33",
        r#"pool[1].cidrs: "198.51.100.0/33" is not an IPv4 CIDR; write it as in "203.0.113.0/24""#,
    ),
    (
        "198.51.100.0/24",
        "2001:db8::/64",
        r#"pool[1].cidrs: "2001:db8::/64" is not an IPv4 CIDR; write it as in "203.0.113.0/24""#,
    ),
    (
        "198.51.100.0/24",
        "198.51.100.7",
        r#"pool[1].cidrs: "198.51.100.7" has no prefix length; write "198.51.100.7/32" for the one address"#,
    ),
    (
        "198.51.100.0/24",
        "198.51.100.7/24",
        r#"pool[1].cidrs: "198.51.100.7/24" has host bits; write "198.51.100.0/24", or "198.51.100.7/32" for the one address"#,
    ),
    (
        "198.51.100.0/24",
        "203.0.113.64/26",
        r#"pool[1].cidrs: 203.0.113.64/26 overlaps 203.0.113.0/25 of pool "default"; an address can be there only once: remove one of them"#,
    ),
    (
        "198.51.100.0/24",
        "203.0.0.0/16",
        r#"pool[1].cidrs: 203.0.0.0/16 overlaps 203.0.113.0/25 of pool "default"; an address can be there only once: remove one of them"#,
    ),
    (
        r#"["198.51.100.0/24"]"#,
        r#"["198.51.100.0/24", "198.51.100.8/32"]"#,
        "pool[1].cidrs: 198.51.100.8/32 overlaps 198.51.100.0/24 of the same pool; \
         an address can be there only once: remove one of them",
    ),
    (
        r#"cidrs = ["198.51.100.0/24"]"#,
        "",
        r#"pool[1].cidrs: missing; write at least one, as in cidrs = ["203.0.113.0/24"]"#,
    ),
    (
        "198.51.100.0/24",
        "0.0.0.0/0",
        "pool[1].cidrs: \"0.0.0.0/0\" overlaps 0.0.0.0/8 (\"this network\"), which is never routed; \
         write addresses that are yours",
    ),
    (
        "198.51.100.0/24",
        "127.1.0.0/16",
        "pool[1].cidrs: \"127.1.0.0/16\" overlaps 127.0.0.0/8 (loopback), which is never routed; \
         write addresses that are yours",
    ),
    (
        "198.51.100.0/24",
        "169.254.169.254/32",
        "pool[1].cidrs: \"169.254.169.254/32\" overlaps 169.254.0.0/16 (link-local), which is never routed; \
         write addresses that are yours",
    ),
    (
        "198.51.100.0/24",
        "224.1.0.0/16",
        "pool[1].cidrs: \"224.1.0.0/16\" overlaps 224.0.0.0/4 (multicast), which is never routed; \
         write addresses that are yours",
    ),
    (
        "198.51.100.0/24",
        "255.255.255.255/32",
        "pool[1].cidrs: \"255.255.255.255/32\" overlaps 240.0.0.0/4 (reserved), which is never routed; \
         write addresses that are yours",
    ),
    (
        r#"reserve = ["203.0.113.1"]"#,
        r#"reserve = ["198.51.100.1"]"#,
        "pool[0].reserve: 198.51.100.1 is not in this pool's cidrs; remove or correct it",
    ),
    (
        r#"reserve = ["203.0.113.1"]"#,
        r#"reserve = ["203.0.113.0/30"]"#,
        r#"pool[0].reserve: "203.0.113.0/30" is not an IPv4 address; write it as in "203.0.113.1""#,
    ),
    (
        r#""60s""#,
        r#""soon""#,
        r#"pool[0].reuse_delay: "soon" is not a duration; write it as in "60s" or "24h""#,
    ),
    (
        r#""60s""#,
        r#""2years""#,
        r#"pool[0].reuse_delay: "2years" is more than a year; write it as in "60s" or "24h""#,
    ),
];

/// Runs the daemon on a configuration, and answers its exit code and what it says instead.
fn run(text: &str) -> (u8, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let (code, said) = run_file(file.path());
    (code, said.replace(&file.path().display().to_string(), "FILE"))
}

fn run_file(file: &Path) -> (u8, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = ["eipnat".as_ref(), "run".as_ref(), "--config".as_ref(), file.as_os_str()].map(OsString::from);
    let code = cli::run(args, &mut out, &mut err);
    assert!(out.is_empty());
    (code, String::from_utf8(err).unwrap())
}

#[test]
fn every_mistake_gets_its_one_line() {
    for (from, to, error) in MISTAKES {
        assert_eq!(GOOD.matches(from).count(), 1, "{from}");
        assert_eq!(run(&GOOD.replace(from, to)), (1, format!("error: FILE: {error}\n")));
    }
}

#[test]
fn what_is_too_much_gets_its_one_line() {
    let names = |count: usize| (0..count).map(|index| format!("\"if{index}\"")).collect::<Vec<_>>().join(",");
    let too_many = GOOD.replace(r#"uplinks = ["lo"]"#, &format!("uplinks = [{}]", names(64)));
    let error = "datapath.downlinks: 65 interfaces with the uplinks; a node can have 64: name fewer";
    assert_eq!(run(&too_many), (1, format!("error: FILE: {error}\n")));

    let cidrs = (0..1022_u32).fold(String::new(), |mut list, index| {
        write!(list, r#""10.{}.{}.0/24","#, index / 256, index % 256).unwrap();
        list
    });
    let too_many = GOOD.replace(r#""198.51.100.0/24""#, &cidrs);
    let error = "pool: 1025 cidrs and reserved addresses; a node can have 1024: join neighbouring ones";
    assert_eq!(run(&too_many), (1, format!("error: FILE: {error}\n")));

    let too_long = GOOD.replace("/run/eipnat/api.sock", &format!("/run/{}", "s".repeat(103)));
    let error = "api.socket: a path of 108 bytes; a socket's may have 107: shorten it";
    assert_eq!(run(&too_long), (1, format!("error: FILE: {error}\n")));

    let no_pool = &GOOD[..GOOD.find("[[pool]]").unwrap()];
    let error = "pool: missing; add a [[pool]] with name and cidrs";
    assert_eq!(run(no_pool), (1, format!("error: FILE: {error}\n")));
    let error =
        "pool: wrong type: invalid type: table, expected an array; begin each pool with a line [[pool]]";
    assert_eq!(run(&format!("{no_pool}[pool]\nname = \"p\"")), (1, format!("error: FILE: {error}\n")));
}

#[test]
fn a_file_that_cannot_be_read_gets_its_one_line() {
    let (code, said) = run_file("/no/such/file.toml".as_ref());
    let error =
        "cannot be read: No such file or directory (os error 2); name a readable TOML file with --config";
    assert_eq!((code, said), (1, format!("error: /no/such/file.toml: file: {error}\n")));
    let (code, said) = run_file(std::env::temp_dir().as_path());
    assert_eq!((code, said.lines().count()), (1, 1), "{said}");
    assert_eq!(run("\u{0}\u{7}").1.lines().count(), 1);
}

#[test]
fn a_good_file_is_what_it_says() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), GOOD).unwrap();
    let config = Config::load(file.path()).unwrap();
    assert_eq!(config.node_name.to_string(), "nat-1");
    assert_eq!(config.datapath.public_ip, Some([192, 0, 2, 1].into()));
    assert_eq!((config.datapath.mode, config.datapath.max_bindings), (Mode::Auto, 1 << 20));
    assert_eq!(config.api.group.as_deref(), Some("root"));
    let cidrs: Vec<String> = config.spec.pools[0].cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["203.0.113.0/25", "203.0.113.128/25"], "ascending");
    assert_eq!(config.spec.pools[0].reuse_delay, Duration::from_mins(1));
}

#[test]
fn what_is_left_out_has_a_default() {
    let short = r#"
        datapath = { uplinks = ["eth7"], downlinks = ["eth7"] }
        pool = [{ name = "p", cidrs = ["203.0.113.7/32"] }]
    "#;
    let config = check::config(raw::parse(short).unwrap()).unwrap();
    let explicit = check::config(raw::parse(GOOD).unwrap()).unwrap();
    assert_eq!(config.node_name, explicit.node_name);
    assert_eq!(config.store_path, explicit.store_path);
    assert_eq!(config.api, Api { group: None, ..explicit.api });
    assert_eq!(config.metrics, explicit.metrics);
    let datapath =
        Datapath { uplinks: vec!["eth7".into()], downlinks: vec!["eth7".into()], ..explicit.datapath };
    assert_eq!(config.datapath, Datapath { public_ip: None, ..datapath });
    assert_eq!(config.spec.pools[0].reuse_delay, explicit.spec.pools[0].reuse_delay);
}
