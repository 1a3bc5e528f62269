import json
import re
import runpy
import shutil
import subprocess

import pytest
import yaml

from tests.deploy import LABEL_VALUES, SAMPLES
from tests.deploy.files import COMPONENTS, DEPLOY, KUBERNETES, ROOT, image_ports, load
from tests.deploy.kustomize import build

PROMETHEUS = DEPLOY / "prometheus"
GRAFANA = DEPLOY / "grafana"
RULES = load(PROMETHEUS / "alerts.yml")["groups"][0]["rules"]
ALERTS = {rule["alert"]: rule for rule in RULES}
DASHBOARD = json.loads((GRAFANA / "nocturne.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
BUILT = build(KUBERNETES / "base", [KUBERNETES / part for part in COMPONENTS])
_WORDS = {"by", "without", "on", "ignoring", "and", "or", "unless", "bool", "offset", "inf", "nan"}
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")


def expressions():
    """Every query of a dashboard, an alert, an autoscaler, by where it stands."""
    found = {f"alert {name}": rule["expr"] for name, rule in ALERTS.items()}
    for panel in PANELS:
        found |= {f"panel {panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    for trigger in BUILT["ScaledObject", "nocturne"]["spec"]["triggers"]:
        found[f"trigger {trigger['name']}"] = trigger["metadata"]["query"]
    return found


def names_of(expression):
    """The metrics that a query reads: what is neither a function, nor a word of PromQL, nor a label, nor a number."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|without|on|ignoring)\s*\([^)]*\)|\boffset\s+\w+", " ", expression)
    return {name for name in re.findall(r"\b([A-Za-z_:][\w:]*)\b(?!\s*\()", bare) if name not in _WORDS}


def test_the_names_of_a_query_are_found():
    assert names_of('sum by (le) (rate(a_bucket{b=~"c|d"}[5m])) / on (e) f offset 5m > bool 0.5 or absent(up == 1)') == {
        "a_bucket", "f", "up",
    }  # fmt: skip


@pytest.mark.parametrize("where", expressions())
def test_every_query_reads_metrics_that_there_are_and_compares_labels_with_values_that_there_are(where):
    expression = expressions()[where]
    assert names_of(expression)
    assert names_of(expression) - {"up"} <= SAMPLES
    for label, values in re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', expression):
        if label in LABEL_VALUES:
            assert set(values.split("|")) <= LABEL_VALUES[label]


def test_every_metric_is_shown():
    shown = set().union(*(names_of(target["expr"]) for panel in PANELS for target in panel["targets"]))
    metrics, shown = ({re.sub(r"_(bucket|sum|count)$", "", name) for name in names} for names in (SAMPLES, shown))
    assert shown == metrics


def test_every_alert_says_how_bad_it_is_what_is_wrong_and_what_it_means():
    assert len(ALERTS) == len(RULES)
    for name, rule in ALERTS.items():
        assert name.startswith("Nocturne")
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_every_alert_is_tested_to_come_and_not_to_come():
    came, stayed_away = set(), set()
    for test in load(PROMETHEUS / "alerts_test.yml")["tests"]:
        for check in test["alert_rule_test"]:
            (came if check.get("exp_alerts") else stayed_away).add(check["alertname"])
    assert came == stayed_away == set(ALERTS)


def test_the_rule_of_the_operator_is_written_from_the_alerts():
    script = runpy.run_path(str(PROMETHEUS / "prometheusrule.py"))
    assert script["TARGET"].read_text(encoding="utf-8") == script["prometheus_rule"](), "run deploy/prometheus/prometheusrule.py"
    rule = BUILT["PrometheusRule", "nocturne"]
    assert rule["spec"] == load(PROMETHEUS / "alerts.yml")


def test_prometheus_scrapes_the_admin_port_of_the_service_and_reads_the_alerts():
    config = load(PROMETHEUS / "prometheus.yml")
    (job,) = config["scrape_configs"]
    ((target,),) = (entry["targets"] for entry in job["static_configs"])
    service, port = target.split(":")
    assert service in load(ROOT / "docker-compose.yaml")["services"]
    assert int(port) == image_ports()["admin"]
    assert all((PROMETHEUS / name).is_file() for name in config["rule_files"])
    known = {value for rule in RULES for value in re.findall(r'job="(\w+)"', rule["expr"])}
    assert known == {job["job_name"]}


def test_prometheus_looks_several_times_within_the_shortest_alert_and_the_narrowest_window():
    interval_s = int(load(PROMETHEUS / "prometheus.yml")["global"]["scrape_interval"].removesuffix("s"))
    spans = [span for rule in RULES for span in (rule.get("for", "1h"), *re.findall(r"\[(\w+)\]", rule["expr"]))]
    assert min(int(span[:-1]) * {"s": 1, "m": 60, "h": 3600}[span[-1]] for span in spans) >= 3 * interval_s
    (source,) = load(GRAFANA / "provisioning/datasources/prometheus.yml")["datasources"]
    assert source["jsonData"]["timeInterval"] == f"{interval_s}s"
    (endpoint,) = BUILT["PodMonitor", "nocturne"]["spec"]["podMetricsEndpoints"]
    assert endpoint["interval"] == f"{interval_s}s"


def test_the_adapter_serves_what_the_autoscaler_reads():
    (rule,) = load(PROMETHEUS / "adapter.yml")["rules"]
    (served,) = re.findall(r'__name__=~"([^"]*)"', rule["seriesQuery"])
    autoscaler = build(KUBERNETES / "base")["HorizontalPodAutoscaler", "nocturne"]
    read = {metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"]}
    assert set(served.split("|")) == read <= SAMPLES
    assert rule["resources"]["overrides"] == {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}


def test_every_panel_is_described_and_asks_the_chosen_prometheus_about_the_chosen_instances():
    for panel in PANELS:
        assert panel["title"], panel["id"]
        assert len(panel["description"].split()) > 5, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert target["expr"].count('instance=~"$instance"') == len(re.findall(r"\b(?:nocturne|process)_\w+", target["expr"]))
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "instance"]


def test_the_rows_are_requests_latency_and_engine_and_no_two_panels_overlap():
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Requests and errors", "Latency", "Engine"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells = []
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells += [(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]
    assert len(cells) == len(set(cells))


def test_latency_is_shown_at_three_quantiles():
    titles = {panel["title"]: panel for panel in PANELS}
    for name in ("In the queue", "To the first note", "Composing", "To the answer"):
        assert [target["legendFormat"] for target in titles[name]["targets"]] == ["p50", "p95", "p99"]


def test_the_bounds_drawn_are_those_of_the_alerts():
    titles = {panel["title"]: panel for panel in PANELS}
    for title, alert in (("Refused or late", "NocturneRefuses"), ("To the answer", "NocturneSlow")):
        (bound,) = (step["value"] for step in titles[title]["fieldConfig"]["defaults"]["thresholds"]["steps"] if step["value"])
        assert float(ALERTS[alert]["expr"].rpartition(">")[2]) == bound
        assert alert in titles[title]["description"]


@needs_promtool
@pytest.mark.parametrize("command", ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"])
def test_promtool_has_no_objection(command):
    done = subprocess.run(["promtool", *command.split()], cwd=PROMETHEUS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_can_read_every_query(tmp_path):
    given = {"$__rate_interval": "1m", "$__range": "1h", "$instance": ".*"}
    queries = expressions()
    adapter = load(PROMETHEUS / "adapter.yml")["rules"][0]["metricsQuery"]
    for name, text in {"<<.Series>>": "nocturne_slots", "<<.LabelMatchers>>": 'pod="a"', "<<.GroupBy>>": "pod"}.items():
        adapter = adapter.replace(name, text)
    queries["adapter"] = adapter
    for name, text in given.items():
        queries = {where: query.replace(name, text) for where, query in queries.items()}
    rules = [{"record": f"query:{i}", "labels": {"of": where}, "expr": query} for i, (where, query) in enumerate(queries.items())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
