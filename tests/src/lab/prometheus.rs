//! A real Prometheus on the lab's node, which scrapes the daemon every second.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{Lab, METRICS, Namespace, Process, curl};

/// Where it listens, in the node's namespace.
const LISTEN: &str = "127.0.0.1:9090";

/// A running Prometheus. Dropping it kills it.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    node: Namespace,
}

impl Prometheus {
    /// Starts it, with the job `eipnat` and these rules, which are evaluated every second.
    ///
    /// # Errors
    /// When it does not start, or does not like the rules.
    pub fn start(lab: &Lab, rules: Option<&Path>) -> Result<Self> {
        let config = lab.file("prometheus.yml");
        let rules: Vec<_> = rules.iter().map(|rules| format!("'{}'", rules.display())).collect();
        std::fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
                 rule_files: [{}]\n\
                 scrape_configs: [{{job_name: eipnat, static_configs: [{{targets: ['{METRICS}']}}]}}]\n",
                rules.join(", ")
            ),
        )?;
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", lab.file("prometheus").display()));
        command.arg(format!("--web.listen-address={LISTEN}"));
        let mut process = lab.node.spawn(command, lab.file("prometheus.log"))?;
        process.wait_for("Server is ready to receive web requests", Duration::from_secs(30))?;
        Ok(Self { process, node: lab.node.clone() })
    }

    /// Asks its API, such as `rules`, and returns the data of the answer.
    ///
    /// # Errors
    /// When it does not answer, or with an error.
    pub fn ask(&self, resource: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let parameters: Vec<String> = parameters
            .iter()
            .flat_map(|(key, value)| ["--data-urlencode".into(), format!("{key}={value}")])
            .collect();
        let options: Vec<&str> = ["--get"].into_iter().chain(parameters.iter().map(String::as_str)).collect();
        let answer = curl(&self.node, &format!("http://{LISTEN}/api/v1/{resource}"), &options)?;
        let mut answer: Value = serde_json::from_slice(&answer)?;
        ensure!(answer["status"] == "success", "{resource} {parameters:?}: {answer}");
        Ok(answer["data"].take())
    }

    /// Every series that answers a query, now: its labels and its value.
    ///
    /// # Errors
    /// When the query is wrong.
    pub fn query(&self, promql: &str) -> Result<Vec<(Value, String)>> {
        let mut data = self.ask("query", &[("query", promql)])?;
        let Value::Array(series) = data["result"].take() else {
            anyhow::bail!("{promql}: no series: {data}")
        };
        let one = |mut series: Value| {
            let value = series["value"][1].as_str().context("no value")?.to_owned();
            Ok((series["metric"].take(), value))
        };
        series.into_iter().map(one).collect()
    }

    /// Asks until it has scraped what is expected, or says what it has instead.
    ///
    /// # Errors
    /// When it has not in time.
    pub fn expect(&self, promql: &str, expected: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let values: Vec<String> = self.query(promql)?.into_iter().map(|(_, value)| value).collect();
            if values == [expected.to_string()] {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{promql} is {values:?}, not {expected}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(mut self) -> Result<()> {
        self.process.stop(Signal::TERM, Duration::from_secs(20)).map(drop)
    }
}
