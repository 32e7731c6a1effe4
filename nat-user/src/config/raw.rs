//! The file's shape: sections, keys and their types, and nothing about what they mean.

use serde::Deserialize;

use super::KeyError;

/// Every key with an example of its value, for the mend of a wrong type and of an unknown key.
const EXAMPLES: &[(&str, &str)] = &[
    ("node.name", r#""nat-1""#),
    ("node.public_ip", r#""192.0.2.1""#),
    ("datapath.uplinks", r#"["up0"]"#),
    ("datapath.downlinks", r#"["dn0"]"#),
    ("datapath.mode", r#""auto""#),
    ("datapath.max_bindings", "1048576"),
    ("datapath.pin_path", r#""/sys/fs/bpf/eipnat""#),
    ("slow_path.enabled", "true"),
    ("slow_path.rate", "1000"),
    ("slow_path.icmp_rate", "1000"),
    ("slow_path.icmp_rate_to_one", "100"),
    ("slow_path.cpu", "1"),
    ("slow_path.zero_copy", "false"),
    ("store.path", r#""/var/lib/eipnat""#),
    ("api.socket", r#""/run/eipnat/api.sock""#),
    ("api.group", r#""eipnat""#),
    ("api.rate", "2000"),
    ("metrics.listen", r#""127.0.0.1:9464""#),
    ("metrics.series", r#""all""#),
    ("metrics.active_window", r#""5m""#),
    ("usage.interval", r#""1h""#),
    ("usage.retention", r#""90d""#),
    ("quota.eips", "100"),
    ("quota.vms", "100"),
    ("account[].name", r#""acme""#),
    ("account[].eips", "1000"),
    ("account[].vms", "1000"),
    ("pool[].name", r#""default""#),
    ("pool[].cidrs", r#"["203.0.113.0/24"]"#),
    ("pool[].reserve", r#"["203.0.113.1"]"#),
    ("pool[].reuse_delay", r#""60s""#),
];

/// What serde says of types, and what TOML calls them.
const TOML_WORDS: [(&str, &str); 4] = [
    ("type: map,", "type: table,"),
    ("type: sequence,", "type: array,"),
    ("expected a sequence", "expected an array"),
    ("expected i64", "expected an integer"),
];

#[derive(Default, Deserialize)]
#[serde(default, expecting = "tables")]
pub(super) struct Raw {
    pub(super) node: Node,
    pub(super) datapath: Datapath,
    pub(super) slow_path: SlowPath,
    pub(super) store: Store,
    pub(super) api: Api,
    pub(super) metrics: Metrics,
    pub(super) usage: Usage,
    pub(super) quota: Quota,
    pub(super) account: Vec<Account>,
    pub(super) pool: Vec<Pool>,
}

#[derive(Default, Deserialize)]
#[serde(default, expecting = "a table")]
pub(super) struct Quota {
    pub(super) eips: Option<i64>,
    pub(super) vms: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default, expecting = "a table")]
pub(super) struct Account {
    pub(super) name: Option<String>,
    pub(super) eips: Option<i64>,
    pub(super) vms: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default, expecting = "a table")]
pub(super) struct Node {
    pub(super) name: Option<String>,
    pub(super) public_ip: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, expecting = "a table")]
pub(super) struct Datapath {
    pub(super) uplinks: Vec<String>,
    pub(super) downlinks: Vec<String>,
    pub(super) mode: Option<String>,
    pub(super) max_bindings: Option<i64>,
    pub(super) pin_path: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, expecting = "a table")]
pub(super) struct SlowPath {
    pub(super) enabled: Option<bool>,
    pub(super) rate: Option<i64>,
    pub(super) icmp_rate: Option<i64>,
    pub(super) icmp_rate_to_one: Option<i64>,
    pub(super) cpu: Option<i64>,
    pub(super) zero_copy: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, expecting = "a table")]
pub(super) struct Store {
    pub(super) path: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, expecting = "a table")]
pub(super) struct Api {
    pub(super) socket: Option<String>,
    pub(super) group: Option<String>,
    pub(super) rate: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default, expecting = "a table")]
pub(super) struct Metrics {
    pub(super) listen: Option<String>,
    pub(super) series: Option<String>,
    pub(super) active_window: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, expecting = "a table")]
pub(super) struct Usage {
    pub(super) interval: Option<String>,
    pub(super) retention: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, expecting = "a table")]
pub(super) struct Pool {
    pub(super) name: Option<String>,
    pub(super) cidrs: Vec<String>,
    pub(super) reserve: Vec<String>,
    pub(super) reuse_delay: Option<String>,
}

/// Gives TOML its shape.
pub(super) fn parse(text: &str) -> Result<Raw, KeyError> {
    let toml = toml::Deserializer::parse(text).map_err(|error| syntax(text, &error))?;
    let (mut track, mut unknown) = (serde_path_to_error::Track::new(), None);
    let raw = serde_ignored::deserialize(serde_path_to_error::Deserializer::new(toml, &mut track), |path| {
        unknown.get_or_insert_with(|| dotted(&path));
    });
    match (raw, unknown) {
        (_, Some(key)) => Err(unknown_key(&key)),
        (Ok(raw), None) => Ok(raw),
        (Err(error), None) => Err(wrong_type(&track.path().to_string(), &error)),
    }
}

fn syntax(text: &str, error: &toml::de::Error) -> KeyError {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.split('\n').count();
    KeyError::new(
        format!("line {line}"),
        format!("not TOML: {}; see https://toml.io for how it is written", error.message()),
    )
}

fn wrong_type(key: &str, error: &toml::de::Error) -> KeyError {
    let general = without_indices(key);
    let mend =
        match EXAMPLES.iter().find(|(known, _)| general.strip_suffix("[]").unwrap_or(&general) == *known) {
            Some((known, example)) => format!("write it as in {} = {example}", last(known)),
            None if key.starts_with("account") => "begin each account with a line [[account]]".to_owned(),
            None if key.starts_with("pool") => "begin each pool with a line [[pool]]".to_owned(),
            None => format!("begin the section with a line [{}]", general.trim_end_matches("[]")),
        };
    let what =
        TOML_WORDS.iter().fold(error.message().to_owned(), |what, (serde, toml)| what.replace(serde, toml));
    KeyError::new(key, format!("wrong type: {what}; {mend}"))
}

fn unknown_key(key: &str) -> KeyError {
    let general = without_indices(key);
    let section = general.rsplit_once('.').map_or("", |(section, _)| section);
    let known: Vec<&str> = if section.is_empty() {
        vec![
            "[node]",
            "[datapath]",
            "[slow_path]",
            "[store]",
            "[api]",
            "[metrics]",
            "[usage]",
            "[quota]",
            "[[account]]",
            "[[pool]]",
        ]
    } else {
        let keys = EXAMPLES.iter().map(|(known, _)| *known);
        keys.filter(|known| known.rsplit_once('.').is_some_and(|(its, _)| its == section)).map(last).collect()
    };
    KeyError::new(key, format!("unknown key; correct or remove it (known here: {})", known.join(", ")))
}

fn last(key: &str) -> &str {
    key.rsplit_once('.').map_or(key, |(_, last)| last)
}

/// `pool[3].name` as `pool[].name`.
fn without_indices(key: &str) -> String {
    key.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// A path in the notation that [`serde_path_to_error`] has as well.
fn dotted(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", dotted(parent)),
        Path::Map { parent: Path::Root, key } => key.clone(),
        Path::Map { parent, key } => format!("{}.{key}", dotted(parent)),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            dotted(parent)
        }
    }
}
