//! Mistakes: one line says what is wrong and how to mend it, and nothing is left or changed.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use tests::lab::{
    Bed, Config, Daemon, EIP1, Lab, Setup, Topology, eipnat_binary, ping, pins, refused, run_eipnat,
};

/// A change to a good configuration, and the key that the complaint has to name.
type Mistake = (&'static str, &'static str, &'static str);

/// What is replaced, by what, and the key.
const MISTAKES: &[Mistake] = &[
    ("max_bindings = 1024", "max_bindingz = 1024", "datapath.max_bindingz"),
    ("[store]", "[storage]", "storage"),
    ("[node]\n", "[node]\ncolour = \"red\"\n", "node.colour"),
    ("reuse_delay = \"60s\"", "reuse_delay = \"60s\"\nweight = 1", "pool[0].weight"),
    ("uplinks = [\"up0\"]", "uplinks = [\"up7\"]", "datapath.uplinks"),
    ("downlinks = [\"dn0\"]", "downlinks = [\"dn7\"]", "datapath.downlinks"),
    ("uplinks = [\"up0\"]", "uplinks = []", "datapath.uplinks"),
    ("downlinks = [\"dn0\"]\n", "", "datapath.downlinks"),
    ("mode = \"auto\"", "mode = \"turbo\"", "datapath.mode"),
    ("max_bindings = 1024", "max_bindings = 0", "datapath.max_bindings"),
    ("max_bindings = 1024", "max_bindings = \"many\"", "datapath.max_bindings"),
    ("203.0.113.0/24\"]", "203.0.113.0/24\", \"203.0.113.128/25\"]", "pool[0].cidrs"),
    ("203.0.113.0/24\"]", "203.0.113.0/33\"]", "pool[0].cidrs"),
    // It holds the node's own address.
    ("203.0.113.0/24\"]", "198.51.100.0/24\"]", "pool[0].cidrs"),
    // It is the node's gateway.
    ("203.0.113.0/24\"]", "198.51.100.1/32\"]", "pool[0].cidrs"),
    ("[store]", "[slow_path]\nrate = 0\n[store]", "slow_path.rate"),
    ("203.0.113.0/24\"]", "203.0.113.5/24\"]", "pool[0].cidrs"),
    ("reuse_delay = \"60s\"", "reuse_delay = \"soon\"", "pool[0].reuse_delay"),
    ("name = \"default\"", "name = \"De Fault\"", "pool[0].name"),
    ("name = \"nat-1\"", "name = \"10.0.0.1\"", "node.name"),
    ("listen = \"127.0.0.1:9464\"", "listen = \"localhost\"", "metrics.listen"),
    (
        "reuse_delay = \"60s\"",
        "reuse_delay = \"60s\"\n[[pool]]\nname = \"second\"\ncidrs = [\"203.0.113.64/32\"]",
        "pool[1].cidrs",
    ),
];

/// Asserts that a start of the daemon has left nothing in the lab.
fn nothing_is_left(lab: &Lab, config: &Config) -> Result<()> {
    assert_eq!(lab.programs()?, []);
    assert_eq!(pins(config)?, Vec::<String>::new());
    assert!(!config.socket().exists(), "the socket is there");
    for device in ["up0", "dn0"] {
        let forwarding = lab.node.read_sysctl(&format!("net/ipv4/conf/{device}/forwarding"))?;
        assert_eq!(forwarding, "0", "forwarding of {device}");
    }
    // A bpffs that was mounted on it would be busy, so this is about mounts as well.
    assert!(!config.pin_path.exists(), "{} is there", config.pin_path.display());
    assert!(!config.store().exists(), "{} is there", config.store().display());
    Ok(())
}

fn run(lab: &Lab, file: &Path) -> Result<Output> {
    run_eipnat(&lab.node, &eipnat_binary()?, &["run", "--config", &file.to_string_lossy()])
}

/// The complaint about a configuration file without the file's name: `KEY: what is wrong; how to mend it`.
fn complaint(output: &Output, file: &Path) -> Result<String> {
    let line = refused(output)?;
    let start = format!("{}: ", file.display());
    let rest = line.strip_prefix(&start).with_context(|| format!("does not name the file: {line}"))?;
    ensure!(rest.contains("; "), "does not say how to mend it: {line}");
    Ok(rest.to_owned())
}

#[test]
fn each_mistake_in_the_configuration_is_one_line_and_changes_nothing() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let config = Config::of(&lab);
    let good = config.to_toml();
    let file = lab.file("eipnat.toml");
    for (from, to, key) in MISTAKES {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from} is not in the configuration");
        std::fs::write(&file, bad)?;
        let complaint = complaint(&run(&lab, &file)?, &file).with_context(|| format!("{from} -> {to}"))?;
        assert!(complaint.starts_with(&format!("{key}: ")), "{from} -> {to}: {complaint}");
        nothing_is_left(&lab, &config).with_context(|| format!("{from} -> {to}"))?;
    }
    lab.remove()
}

#[test]
fn a_file_that_is_no_toml_or_not_there_is_one_line() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let config = Config::of(&lab);
    let file = lab.file("eipnat.toml");
    complaint(&run(&lab, &file)?, &file).context("not there")?;
    std::fs::write(&file, config.to_toml().replace("[node]", "[node"))?;
    complaint(&run(&lab, &file)?, &file).context("no TOML")?;
    std::fs::write(&file, [0xff, 0xfe, 0x00])?;
    complaint(&run(&lab, &file)?, &file).context("no text")?;
    nothing_is_left(&lab, &config)?;
    lab.remove()
}

#[test]
fn what_the_machine_does_not_allow_is_one_line_and_leaves_nothing() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let config = Config::of(&lab);
    let file = lab.file("eipnat.toml");
    // The metrics' port is taken.
    std::fs::write(&file, config.to_toml())?;
    let taken = lab.node.run(|| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 9464)))??;
    let line = refused(&run(&lab, &file)?).context("port taken")?;
    assert!(line.contains("9464"), "{line}");
    nothing_is_left(&lab, &config)?;
    drop(taken);
    // An interface that no XDP program runs on in native mode.
    lab.node.ip(&["link add bridge0 type bridge", "link set bridge0 up"])?;
    let text = config.to_toml().replace("mode = \"auto\"", "mode = \"native\"");
    std::fs::write(&file, text.replace("downlinks = [\"dn0\"]", "downlinks = [\"bridge0\"]"))?;
    let line = refused(&run(&lab, &file)?).context("no native mode")?;
    assert!(line.contains("bridge0") && line.contains("generic"), "{line}");
    nothing_is_left(&lab, &config)?;
    lab.remove()
}

#[test]
fn a_second_daemon_is_refused_and_disturbs_nothing() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let lab = &bed.lab;
        let own = bed.daemon.config().clone();
        let before = state(bed)?;
        let elsewhere = |part: &str| own.dir.join(part).to_string_lossy().into_owned();
        let good = own.to_toml().replace("127.0.0.1:9464", "127.0.0.1:9465");
        let sock = own.socket().to_string_lossy().into_owned();
        let pin = own.pin_path.to_string_lossy().into_owned();
        let cases = [
            ("all the same", good.clone()),
            ("same socket", good.replace(&pin, &elsewhere("bpf2")).replace("/store\"", "/store2\"")),
            ("same pins", good.replace(&sock, &elsewhere("api2.sock")).replace("/store\"", "/store2\"")),
        ];
        let file = lab.file("second.toml");
        for (name, text) in cases {
            std::fs::write(&file, text)?;
            let line = refused(&run(lab, &file)?).context(name)?;
            assert!(line.len() > 20, "{name}: {line}");
            assert!(bed.daemon.is_running()?, "{name}: the first daemon has ended");
            assert_eq!(state(bed)?, before, "{name}");
            let pings = ping(&lab.internet, EIP1, 3, &[])?;
            assert_eq!(pings.received, 3, "{name}");
        }
        Ok(())
    })
}

/// What a second daemon must not change: programs, pins, and what the first daemon says of itself.
type State = (Vec<(String, u32)>, Vec<String>, serde_json::Value);

fn state(bed: &Bed) -> Result<State> {
    Ok((bed.lab.programs()?, pins(bed.daemon.config())?, bed.daemon.json(&["status"])?))
}

#[test]
fn exit_codes_tell_usage_from_no_daemon() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let eipnat = eipnat_binary()?;
    let nonsense: [&[&str]; 7] = [
        &["nonsense"],
        &["eip"],
        &["run"],
        &["eip", "attach", "203.0.113.1"],
        &["eip", "show", "no address"],
        &["eip", "allocate", "--account", "No Account"],
        &["--no-such-option"],
    ];
    for args in nonsense {
        let output = run_eipnat(&lab.node, &eipnat, args)?;
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{args:?}: {output:?}");
    }
    let socket = lab.file("nobody.sock").to_string_lossy().into_owned();
    // Nobody has ever been there; somebody has died there.
    for leftover in [false, true] {
        if leftover {
            drop(std::os::unix::net::UnixListener::bind(&socket)?);
        }
        for args in [&["status"][..], &["eip", "list"], &["stats"], &["eip", "detach", "203.0.113.1"]] {
            let output = run_eipnat(&lab.node, &eipnat, &[&["--socket", &socket], args].concat())?;
            assert_eq!(output.status.code(), Some(3), "{args:?}: {output:?}");
            let stderr = String::from_utf8(output.stderr)?;
            assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr}");
            assert!(stderr.contains(&socket), "{stderr}");
        }
    }
    lab.remove()
}

/// A copy of eipnat that anybody can reach.
fn public_copy() -> Result<(tempfile::TempDir, PathBuf)> {
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755))?;
    let copy = dir.path().join("eipnat");
    std::fs::copy(eipnat_binary()?, &copy)?;
    Ok((dir, copy))
}

#[test]
fn without_root_it_is_one_clear_line() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let config = Config::of(&lab);
    let file = lab.file("eipnat.toml");
    std::fs::write(&file, config.to_toml())?;
    let (_dir, eipnat) = public_copy()?;
    // A stranger; and root in a container that was given no rights.
    let strangers: [&[&str]; 2] = [
        &["--reuid=65534", "--regid=65534", "--clear-groups"],
        &["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"],
    ];
    for stranger in strangers {
        let mut command = Command::new("setpriv");
        command.args(stranger).arg(&eipnat).args(["run", "--config"]).arg(&file);
        let output = lab.node.output(command)?;
        nothing_is_left(&lab, &config)?;
        let line = refused(&output).with_context(|| stranger.join(" "))?;
        assert!(line.contains("root") || line.contains("CAP_"), "{line}");
    }
    lab.remove()
}

#[test]
fn a_stranger_does_not_reach_the_daemon() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let (_dir, eipnat) = public_copy()?;
        let socket = bed.daemon.config().socket();
        let mode = std::fs::metadata(&socket)?.permissions().mode() & 0o777;
        assert_eq!(mode, 0o660, "mode of the socket is {mode:o}");
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&eipnat);
        command.arg("--socket").arg(&socket).arg("status");
        let output = bed.lab.node.output(command)?;
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        Ok(())
    })
}

#[test]
fn a_daemon_starts_beside_a_dead_ones_socket() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let config = Config::of(&lab);
    drop(std::os::unix::net::UnixListener::bind(config.socket())?);
    let mut daemon = Daemon::start(&lab, &eipnat_binary()?, config)?;
    daemon.ok(&["status"])?;
    daemon.stop()?;
    daemon.unload()?;
    lab.remove()
}
