//! The rules for Prometheus and the dashboard for Grafana in docs/monitoring: right in themselves, and about metrics that
//! there are.

use std::collections::{BTreeSet, HashSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use promql_parser::label::{Labels, MatchOp, Matcher};
use promql_parser::parser::{Expr, VectorSelector, parse};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;
use tests::lab::{Bed, EIP_SPARE, EIP1, Prometheus, Setup, ping};

fn file(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/monitoring")).join(name)
}

fn read(name: &str) -> Result<String> {
    std::fs::read_to_string(file(name)).with_context(|| name.to_owned())
}

fn dashboard() -> Result<Value> {
    Ok(serde_json::from_str(&read("dashboard.json")?)?)
}

fn promtool(args: &[&str]) -> Result<()> {
    let output = Command::new("promtool").args(args).current_dir(file("")).output();
    let output = output.context("promtool cannot be started; it is in Debian's package prometheus")?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "promtool {}: {}", args.join(" "), String::from_utf8_lossy(&said));
    Ok(())
}

#[test]
fn promtool_finds_the_rules_right() -> Result<()> {
    promtool(&["check", "rules", "rules.yml"])?;
    promtool(&["check", "config", "prometheus.yml"])?;
    promtool(&["test", "rules", "rules-test.yml"])
}

#[test]
fn every_alert_is_tried_both_ways_and_explained() -> Result<()> {
    let (rules, tests) = (read("rules.yml")?, read("rules-test.yml")?);
    let manual = read("../monitoring.md")?;
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 5, "{alerts:?}");
    for alert in alerts {
        let tries: Vec<&str> = tests.split(&format!("alertname: {alert}")).skip(1).collect();
        // What follows is empty where it does not fire, and names the labels where it does.
        let expected = |tried: &&str| {
            tried.split_once("exp_alerts:").map(|(_, expected)| expected.trim_start().starts_with("[]"))
        };
        let expected: HashSet<_> = tries.iter().map(expected).collect();
        assert_eq!(
            expected,
            HashSet::from([Some(true), Some(false)]),
            "{alert} has to fire in a test, and not in another"
        );
        assert!(manual.contains(&format!("### {alert}\n")), "docs/monitoring.md does not tell of {alert}");
    }
    Ok(())
}

/// What an expression takes for granted.
#[derive(Debug, Default)]
struct Needs {
    /// Series, as selectors without time.
    selectors: Vec<String>,
    /// Labels that they are grouped and matched by.
    labels: BTreeSet<String>,
}

impl Needs {
    fn of(promql: &str) -> Result<Self> {
        let mut needs = Self::default();
        let expression = parse(promql).map_err(|error| anyhow!("{promql}: {error}"))?;
        let Ok(_) = walk_expr(&mut needs, &expression);
        ensure!(!needs.selectors.is_empty(), "{promql} is about nothing");
        Ok(needs)
    }

    /// Each alternative of a label's value has to be there: `reason=~"a|b"` finds series even if nothing is called b any more.
    fn select(&mut self, selector: &VectorSelector) {
        let now = VectorSelector { offset: None, at: None, ..selector.clone() };
        let matchers = &now.matchers.matchers;
        let alternatives = matchers
            .iter()
            .position(|matcher| matches!(matcher.op, MatchOp::Re(_)) && matcher.value.contains('|'));
        let Some(at) = alternatives else { return self.selectors.push(now.to_string()) };
        for value in matchers[at].value.split('|') {
            let mut one = now.clone();
            one.matchers.matchers[at] = Matcher::new(MatchOp::Equal, &matchers[at].name, value);
            self.select(&one);
        }
    }

    fn group(&mut self, labels: &Labels) {
        self.labels.extend(labels.labels.iter().cloned());
    }
}

impl ExprVisitor for Needs {
    type Error = Infallible;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, Infallible> {
        match expression {
            Expr::VectorSelector(selector) => self.select(selector),
            Expr::MatrixSelector(matrix) => self.select(&matrix.vs),
            Expr::Aggregate(aggregate) => {
                if let Some(modifier) = &aggregate.modifier {
                    self.group(modifier.labels());
                }
            }
            Expr::Binary(binary) => {
                if let Some(modifier) = &binary.modifier {
                    modifier.matching.iter().for_each(|matching| self.group(matching.labels()));
                    modifier.card.labels().into_iter().for_each(|labels| self.group(labels));
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

#[test]
fn what_an_expression_needs_is_found_wherever_it_stands() -> Result<()> {
    let needs = Needs::of(
        r#"topk(3, sum by (a) (rate(x_total{k=~"v"}[5m] offset 1h))) > on (b) group_left (c) max_over_time(y[1d:1m]) unless absent(z)"#,
    )?;
    assert_eq!(needs.selectors, [r#"x_total{k=~"v"}"#, "y", "z"]);
    assert_eq!(needs.labels, ["a", "b", "c"].map(str::to_owned).into());
    let needs = Needs::of(r#"sum(x{a=~"b|c", d=~"e|f", g!~"h|i"})"#)?;
    let each = ["b", "c"].into_iter().flat_map(|a| ["e", "f"].map(|d| [a, d]));
    let each = each.map(|[a, d]| format!(r#"x{{a="{a}",d="{d}",g!~"h|i"}}"#));
    assert_eq!(needs.selectors, each.collect::<Vec<_>>());
    assert!(Needs::of("sum(").is_err() && Needs::of("1 + 1").is_err());
    Ok(())
}

/// The text between each pair of marks, such as the labels in `{{instance}} in`.
fn between<'a>(text: &'a str, begin: &'a str, end: char) -> impl Iterator<Item = String> + 'a {
    text.split(begin).skip(1).filter_map(move |rest| {
        let name = rest.trim_start().split(|c: char| c == end || c.is_whitespace()).next()?;
        Some(name.to_owned()).filter(|name| !name.is_empty())
    })
}

/// An expression, where it stands, and the labels that its results are shown with.
#[derive(Debug)]
struct Question {
    place: String,
    promql: String,
    shown: Vec<String>,
    /// Whether it has results on a node that forwards and drops.
    answers: bool,
}

/// Of every rule, as Prometheus has understood it.
fn rules(prometheus: &Prometheus) -> Result<Vec<Question>> {
    let data = prometheus.ask("rules", &[])?;
    let groups = data["groups"].as_array().context("no groups")?;
    let rules = groups.iter().filter_map(|group| group["rules"].as_array()).flatten();
    let question = |rule: &Value| {
        let text = |key: &str| {
            Ok::<_, anyhow::Error>(
                rule[key].as_str().with_context(|| format!("no {key}: {rule}"))?.to_owned(),
            )
        };
        let annotations = rule["annotations"].to_string();
        let shown = between(&annotations, "$labels.", '}').collect();
        let answers = rule["type"] == "recording";
        Ok(Question { place: text("name")?, promql: text("query")?, shown, answers })
    };
    rules.map(question).collect()
}

/// Of every panel and variable, with the variables as Grafana would set them for everything.
fn panels(dashboard: &Value) -> Result<Vec<Question>> {
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        let title = panel["title"].as_str().context("no title")?;
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |key: &str| target[key].as_str().with_context(|| format!("{title}: no {key}"));
            let shown = between(text("legendFormat")?, "{{", '}').collect();
            all.push(Question {
                place: title.to_owned(),
                promql: text("expr")?.to_owned(),
                shown,
                answers: true,
            });
        }
    }
    for variable in dashboard["templating"]["list"].as_array().context("no variables")? {
        if let Some(query) = variable["query"]["query"].as_str() {
            let inner = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')'));
            let (promql, label) =
                inner.and_then(|inner| inner.rsplit_once(',')).context("no label_values")?;
            let (place, shown) = (format!("variable {}", variable["name"]), vec![label.trim().to_owned()]);
            all.push(Question { place, promql: promql.to_owned(), shown, answers: true });
        }
    }
    let values = [("$__rate_interval", "5s"), ("$instance", ".*"), ("$account", ".*"), ("$top", "10")];
    for question in &mut all {
        for (variable, value) in values {
            question.promql = question.promql.replace(variable, value);
        }
        ensure!(
            !question.promql.contains('$'),
            "{}: an unknown variable: {}",
            question.place,
            question.promql
        );
    }
    Ok(all)
}

/// That there is every series that a question is about, with every label that it names; and that it has an answer.
fn check(prometheus: &Prometheus, question: &Question) -> Result<()> {
    let Question { place, promql, shown, answers } = question;
    let needs = Needs::of(promql)?;
    let mut labels = BTreeSet::new();
    for selector in &needs.selectors {
        let series = prometheus.query(selector)?;
        ensure!(!series.is_empty(), "{place}: there is no {selector}");
        labels.extend(
            series
                .iter()
                .filter_map(|(labels, _)| labels.as_object())
                .flat_map(|labels| labels.keys().cloned()),
        );
    }
    for label in needs.labels.iter().chain(shown) {
        ensure!(labels.contains(label), "{place}: no series of {:?} has a label {label}", needs.selectors);
    }
    let results = prometheus.query(promql)?;
    ensure!(!answers || !results.is_empty(), "{place}: nothing answers {promql}");
    // What an answer is called by is what grouping has left of the labels.
    for (labels, _) in results {
        for label in shown {
            ensure!(
                labels.get(label).is_some(),
                "{place}: {promql} answers without a label {label}: {labels}"
            );
        }
    }
    Ok(())
}

/// The same, as soon as enough has been scraped.
fn expect(prometheus: &Prometheus, question: &Question, deadline: Instant) -> Result<()> {
    loop {
        match check(prometheus, question) {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
            Ok(()) => return Ok(()),
        }
    }
}

#[test]
fn every_metric_that_is_named_is_there() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let lab = &bed.lab;
        let prometheus = Prometheus::start(lab, Some(&file("rules.yml")))?;
        let deadline = Instant::now() + Duration::from_secs(30);
        let (rules, panels) = (rules(&prometheus)?, panels(&dashboard()?)?);
        assert!(rules.len() > 10 && panels.len() > 10, "{rules:?}, {panels:?}");
        let looked = AtomicBool::new(false);
        let missing = std::thread::scope(|scope| {
            let traffic = scope.spawn(|| -> Result<()> {
                // Something of everything that is counted.
                while !looked.load(Ordering::Relaxed) {
                    ping(&lab.internet, EIP1, 10, &[])?;
                    ping(&lab.vm2, EIP1, 10, &[])?;
                    ping(&lab.internet, EIP_SPARE, 2, &["-W", "0.1"])?;
                }
                Ok(())
            });
            let questions = rules.iter().chain(&panels);
            let missing = questions.filter_map(|question| expect(&prometheus, question, deadline).err());
            let missing: Vec<String> = missing.map(|error| format!("{error:#}")).collect();
            looked.store(true, Ordering::Relaxed);
            traffic.join().map_err(|_| anyhow!("the traffic panicked"))?.map(|()| missing)
        })?;
        ensure!(missing.is_empty(), "{}", missing.join("\n"));
        // What is looked for here is missed when it is missing.
        for (promql, shown, said) in [
            ("rate(eipnat_no_such_total[5m])", "eip", "there is no eipnat_no_such_total"),
            ("sum by (colour) (eipnat_bindings)", "instance", "has a label colour"),
            ("sum(eipnat_bindings)", "instance", "answers without a label instance"),
            (
                r#"eipnat_dropped_packets_total{reason=~"no_route|no_such|transit"}"#,
                "reason",
                r#"there is no eipnat_dropped_packets_total{reason="no_such"}"#,
            ),
        ] {
            let (place, shown) = ("here".to_owned(), vec![shown.to_owned()]);
            let question = Question { place, promql: promql.to_owned(), shown, answers: false };
            let error = check(&prometheus, &question).err().context(promql)?.to_string();
            assert!(error.contains(said), "{error}");
        }
        let healthy = prometheus.ask("rules", &[])?;
        assert!(!healthy.to_string().contains("\"lastError\""), "{healthy}");
        std::fs::write(lab.file("scrape"), bed.daemon.metrics()?)?;
        let scrape = lab.file("scrape").display().to_string();
        lab.node.succeed("sh", &["-c", &format!("promtool check metrics < {scrape}")])?;
        prometheus.stop()
    })
}

#[test]
fn the_dashboard_is_one_that_grafana_takes() -> Result<()> {
    let dashboard = dashboard()?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let mut ids = HashSet::new();
    let mut taken = HashSet::new();
    for panel in panels {
        let title = panel["title"].as_str().context("no title")?;
        assert!(ids.insert(panel["id"].as_u64().context("no id")?), "{title}: an id twice");
        let place = |key: &str| panel["gridPos"][key].as_u64().with_context(|| format!("{title}: no {key}"));
        let (x, y, w, h) = (place("x")?, place("y")?, place("w")?, place("h")?);
        assert!(x + w <= 24, "{title} is out of the grid");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{title} lies over another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(
            panel["description"].as_str().is_some_and(|text| text.ends_with('.')),
            "{title}: no description"
        );
        let targets = panel["targets"].as_array().context("no targets")?;
        for source in targets.iter().chain([panel]).map(|thing| &thing["datasource"]) {
            assert_eq!(source["uid"], "${datasource}", "{title}: another data source than the one chosen");
        }
        let references: HashSet<&str> =
            targets.iter().filter_map(|target| target["refId"].as_str()).collect();
        assert_eq!(references.len(), targets.len(), "{title}: two targets by one name");
    }
    let variables: Vec<_> = dashboard["templating"]["list"].as_array().into_iter().flatten().collect();
    assert_eq!(variables[0]["type"], "datasource");
    Ok(())
}
