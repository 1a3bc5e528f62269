"""The arithmetic of the capacity plan, and deploy/CAPACITY.md, which is made by it."""

import json
import math
import re
from dataclasses import fields, replace

import pytest
import yaml

from bench import capacity
from bench.capacity import (
    DEFAULTS,
    PAGE,
    SIZES,
    Inputs,
    between,
    doublings,
    exactly,
    figure,
    http_figures,
    limits,
    main,
    make_parser,
    make_plan,
    memory_mib,
    option,
    p50_ms,
    p95_ms,
    passed,
    read_inputs,
    replica_requests_per_s,
    write_page,
)
from bench.shipped import ROOT

# A core composes 1,000 notes/s, 10 requests, of which 5 are planned for; a web process sends 50, of which 25 are.
ROUND = Inputs(
    notes_per_s=2_000, cores=2, request_notes=100, share=0.5, p50_ms_at_50=300, p50_ms_at_80=600, p95_ms_at_50=500,
    p95_ms_at_80=800, web_us=20_000, cheap_us=1_000, memory_mib=100, core_mib=10, answer_bytes=5_000, log_bytes=500, series=100,
    pod_cores=2, max_pods=10, proxy_connections=4_096, link_gbit_s=1,
)  # fmt: skip


def run(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["capacity", *arguments])
    main()
    return capsys.readouterr().out


def test_a_plan_is_the_load_over_what_is_planned_for() -> None:
    plan = make_plan(1_000, ROUND)
    assert (plan.notes_per_s, plan.cores) == (100_000, 200)
    assert plan.replicas == {2: 100, 4: 50, 16: 40}  # 10, 20 and 25 requests/s each: of 16 cores, the web process keeps 5 busy
    assert plan.memory_gib == pytest.approx({2: 100 * 100 / 1024, 4: 50 * 120 / 1024, 16: 40 * 240 / 1024})
    assert plan.under_way == pytest.approx(300)
    assert plan.out_mbit_s == pytest.approx(40)
    assert plan.log_gb_a_day == pytest.approx(43.2)
    assert plan.cores_behind_cache == {0.5: 100, 0.9: 20, 0.99: 2}
    assert plan.gpus is None


def test_what_is_begun_is_counted_whole() -> None:
    plan = make_plan(6, ROUND)
    assert (plan.cores, plan.replicas, plan.cores_behind_cache) == (2, {2: 1, 4: 1, 16: 1}, {0.5: 1, 0.9: 1, 0.99: 1})


def test_gpus_are_planned_for_once_their_speed_is_known() -> None:
    assert make_plan(1_000, replace(ROUND, gpu_notes_per_s=100_000)).gpus == 2
    assert make_plan(1_001, replace(ROUND, gpu_notes_per_s=100_000)).gpus == 3


def test_a_replica_does_what_its_cores_compose_or_its_web_process_sends() -> None:
    assert [replica_requests_per_s(ROUND, cores) for cores in (1, 2, 4, 5, 16)] == [5, 10, 20, 25, 25]
    assert [memory_mib(ROUND, cores) for cores in (2, 4, 16)] == [100, 120, 240]


def test_latency_is_on_the_line_between_what_was_measured() -> None:
    assert (p50_ms(ROUND), p95_ms(ROUND)) == (300, 500)
    assert (p50_ms(replace(ROUND, share=0.8)), p95_ms(replace(ROUND, share=0.8))) == pytest.approx((600, 800))
    assert p95_ms(replace(ROUND, share=0.6)) == pytest.approx(600)
    for share in (0.49, 0.81):
        with pytest.raises(ValueError, match="`share` must be in"):
            p95_ms(replace(ROUND, share=share))


def test_what_ends_first_comes_first() -> None:
    assert [limit.requests_per_s for limit in limits(ROUND)] == pytest.approx([5, 10, 25, 100, 4_096 / 2 / 0.3, 25_000])
    assert [[limit.requests_per_s for limit in passed(size, ROUND)] for size in SIZES] == [
        [5, 10], [25, 100], [], [pytest.approx(6_826.67)], [25_000]
    ]  # fmt: skip


def test_a_web_process_that_is_quick_enough_is_no_limit() -> None:
    assert len(limits(replace(ROUND, web_us=100))) == len(limits(ROUND)) - 1


def test_an_autoscaler_doubles_until_there_are_enough() -> None:
    assert [doublings(2, many) for many in (1, 2, 3, 4, 5, 24, 2_048)] == [0, 0, 1, 1, 2, 4, 10]


def test_figures_have_three_digits_and_inputs_all_of_theirs() -> None:
    assert [figure(value) for value in (0.0123456, 3.4567, 99.96, 123.4, 36_733.3)] == ["0.0123", "3.46", "100", "123", "36,733"]
    assert [exactly(value) for value in (0.6, 11.3, 275.0, 19_301, 10**6)] == ["0.6", "11.3", "275", "19,301", "1,000,000"]


PRINTED = {
    "machine": "A processor, 4 cores, avx2",
    "rss_mib": 200.5,
    "runs": {
        "bare engine": {"notes_per_s": 50_000, "p50": 1, "p95": 2},
        "HTTP, closed loop, 136 clients": {"notes_per_s": 40_000.5, "p50": 3, "p95": 4},
        "HTTP, open loop, 50% of that": {"notes_per_s": 20_000, "p50": 300, "p95": 500},
        "HTTP, open loop, 80% of that": {"notes_per_s": 32_000, "p50": 500, "p95": 900},
    },
}


def test_figures_are_taken_from_what_other_benchmarks_print(tmp_path) -> None:
    assert http_figures(PRINTED) == {
        "notes_per_s": 40_000.5, "cores": 4, "memory_mib": 200.5,
        "p50_ms_at_50": 300, "p95_ms_at_50": 500, "p50_ms_at_80": 500, "p95_ms_at_80": 900,
    }  # fmt: skip
    (tmp_path / "http").write_text(f"a table\n{json.dumps(PRINTED)}\n")
    (tmp_path / "measured").write_text(json.dumps({"machine": "", "answer_bytes": 4_000.0, "memory_mib_by_cores": {"2": 1}}))
    given = ["--http", str(tmp_path / "http"), "--measured", str(tmp_path / "measured"), "--cores", "3", "--share", "0.7"]
    found = read_inputs(make_parser().parse_args(given))
    assert (found.notes_per_s, found.cores, found.answer_bytes, found.share) == (40_000.5, 3, 4_000, 0.7)
    assert found.log_bytes == DEFAULTS.log_bytes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--share", "0.9"], "`share` must be in"), (["--cheap-us", "0"], "`--cheap-us` must be more than 0")],
)
def test_what_cannot_be_computed_with_is_refused_in_a_sentence(monkeypatch, capsys, arguments, said) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, *arguments)
    assert said in capsys.readouterr().err


def test_an_input_that_is_given_is_said_to_be(monkeypatch, capsys) -> None:
    text = run(monkeypatch, capsys, "--gpu-notes-per-s", "1e6")
    assert "python -m bench.capacity --gpu-notes-per-s 1000000\n" in text
    assert "| 1,000,000 notes/s | given | `--gpu-notes-per-s` |" in text
    assert "or GPUs |" in text.splitlines()[4]
    assert capacity.NO_GPU not in text


def test_every_input_has_a_source_and_an_option() -> None:
    options = {text for action in make_parser()._actions for text in action.option_strings}
    for one in fields(Inputs):
        assert one.metadata["what"]
        assert one.metadata["source"]
        assert option(one.name) in options


def test_the_page_is_what_the_command_prints(monkeypatch, capsys) -> None:
    _, inside, _ = between(PAGE.read_text(encoding="utf-8"))
    assert inside == f"\n{run(monkeypatch, capsys)}\n"


def test_writing_the_page_leaves_what_is_around_it(monkeypatch, tmp_path) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(capacity, "PAGE", page)
    page.write_text(f"before\n{capacity.BEGIN}old\n{capacity.END}after\n", encoding="utf-8")
    for text in ("new\n", "newer\n"):
        write_page(text)
        assert page.read_text(encoding="utf-8") == f"before\n{capacity.BEGIN}\n{text}\n{capacity.END}after\n"
    page.write_text("no markers\n", encoding="utf-8")
    with pytest.raises(ValueError, match="the page must have the lines"):
        write_page("new\n")


def table_row(text: str, begin: str) -> list[float]:
    """The numbers in the cells of the one row that begins so; NaN for a cell without one."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {begin}")]
    cells = [re.match(r"[\d.]+", cell.strip().replace(",", "")) for cell in line.strip("|").split("|")[1:]]
    return [float(cell[0]) if cell else math.nan for cell in cells]


def test_what_is_said_to_stand_in_the_readme_stands_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert table_row(readme, "closed loop, ")[0] == DEFAULTS.notes_per_s
    for share, p50, p95 in (
        (50, DEFAULTS.p50_ms_at_50, DEFAULTS.p95_ms_at_50),
        (80, DEFAULTS.p50_ms_at_80, DEFAULTS.p95_ms_at_80),
    ):
        assert table_row(readme, f"arrivals at random, {share} % of that")[2:4] == [p50, p95]
    assert table_row(readme, "service worker and engine together, resident")[0] == DEFAULTS.memory_mib
    parts = readme.partition("| | alone | one of 32 | share |")[2].partition("```")[0]
    names = [line.split("|")[1].strip() for line in parts.splitlines() if line.startswith("| ") and "steps:" not in line]
    assert sum(table_row(parts, name)[1] for name in names) == DEFAULTS.web_us


def test_what_is_said_to_stand_in_a_manifest_stands_there() -> None:
    def load(path: str):
        return yaml.safe_load((ROOT / "deploy" / path).read_text(encoding="utf-8"))

    scaler = load("kubernetes/base/hpa.yaml")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (DEFAULTS.min_pods, DEFAULTS.max_pods)
    assert {"type": "Percent", "value": 100, "periodSeconds": DEFAULTS.double_s} in scaler["behavior"]["scaleUp"]["policies"]
    (container,) = load("kubernetes/base/deployment.yaml")["spec"]["template"]["spec"]["containers"]
    assert float(container["resources"]["limits"]["cpu"]) == DEFAULTS.pod_cores
    assert container["readinessProbe"]["periodSeconds"] == DEFAULTS.probe_s
    assert load("prometheus/prometheus.yml")["global"]["scrape_interval"] == f"{DEFAULTS.scrape_s:g}s"
    nginx = (ROOT / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    assert f"worker_connections {DEFAULTS.proxy_connections:g};" in nginx
    assert f"keys_zone=pieces:{DEFAULTS.cache_pieces / 8_000:g}m " in nginx
