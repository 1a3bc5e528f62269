"""How many cores, replicas and GPUs serve so many requests a second: computed from figures that were measured.

    python -m bench.capacity [--http FILE] [--measured FILE] [--share 0.6] [--gpu-notes-per-s N] [...] [--write]
    python -m bench.capacity --measure [MODEL.onnx]

Prints Markdown. All that goes into it is a field of `Inputs`, which says where it comes from, and an option. `--http` takes the
last line that `bench.http` printed, `--measured` that of `--measure`, which measures what no other benchmark does: the bytes of
an answer and of its line in the log, the time of an answer that is not composed, the memory of more cores, the series of
/metrics. `--write` puts what is printed into deploy/CAPACITY.md too, between its markers.
"""

import argparse
import json
import math
import os
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

from bench.http import free_port, running_service
from bench.load import HOST, LONGEST, SHORTEST, Job, draw_jobs, encode_body, run_load
from bench.processes import read_usage
from bench.shipped import ROOT, add_model
from bench.soak import read_metrics
from bench.tables import finish, show
from service.config import ServiceConfig

SIZES = (10, 100, 1_000, 10_000, 100_000)  # requests a second
REPLICA_CORES = (2, 4, 16)
FOUND = (0.5, 0.9, 0.99)  # shares of requests that a cache answers
PAGE = ROOT / "deploy" / "CAPACITY.md"
BEGIN, END = "<!-- from here on: python -m bench.capacity --write -->\n", "<!-- up to here -->\n"
WIDTH = 130  # of a line of text
MIB, GIB, DAY_S = 2**20, 2**30, 86_400
ANSWERS, CHEAP_ANSWERS, MEMORY_CORES = 200, 3000, (2, 4, 16)  # of --measure

_HTTP = "README, `python -m bench.http`"
_SELF = "`python -m bench.capacity --measure`"
_CLUSTER = "deploy/kubernetes/base/hpa.yaml"


def _from(default: float, what: str, unit: str, source: str) -> Any:
    return field(default=default, metadata={"what": what, "unit": unit, "source": source})


@dataclass(frozen=True)
class Inputs:
    """What the plan is computed from; each field's metadata says what it is, its unit and where it comes from."""

    # fmt: off
    notes_per_s: float = _from(18_291, "composed over HTTP at saturation", "notes/s", _HTTP)
    cores: float = _from(2, "on so many cores, those of the load generator among them", "cores", _HTTP)
    request_notes: float = _from(
        (SHORTEST + LONGEST) / 2, "mean length of a request, 50 to 500 notes being as likely", "notes", "bench/load.py")
    share: float = _from(0.6, "share of the saturation to plan for", "", "a choice")
    p50_ms_at_50: float = _from(299, "p50 at 50 % of the saturation", "ms", _HTTP)
    p50_ms_at_80: float = _from(517, "p50 at 80 %", "ms", _HTTP)
    p95_ms_at_50: float = _from(567, "p95 at 50 %", "ms", _HTTP)
    p95_ms_at_80: float = _from(885, "p95 at 80 %", "ms", _HTTP)
    web_us: float = _from(
        2_901, "processor time of the web process for a piece: all but the steps", "us", "README, `python -m bench.request`")
    cheap_us: float = _from(1_050, "the same for an answer that is not composed, a 304", "us", _SELF)
    memory_mib: float = _from(180, "memory of worker and engine, 2 cores", "MiB", _HTTP)
    core_mib: float = _from(11.3, "more of it for each core more", "MiB", _SELF)
    answer_bytes: float = _from(3_398, "an answer of 275 notes, its head included", "bytes", _SELF)
    log_bytes: float = _from(454, "its line in the access log", "bytes", _SELF)
    series: float = _from(109, "series of a replica's /metrics", "", _SELF)
    scrape_s: float = _from(10, "between two looks of Prometheus", "s", "deploy/prometheus/prometheus.yml")
    pod_cores: float = _from(2, "cores of a pod", "cores", "deploy/kubernetes/base/deployment.yaml")
    probe_s: float = _from(2, "between two probes of a pod's readiness", "s", "deploy/kubernetes/base/deployment.yaml")
    min_pods: float = _from(2, "fewest pods", "", _CLUSTER)
    max_pods: float = _from(10, "most pods", "", _CLUSTER)
    double_s: float = _from(15, "in which the autoscaler may double them", "s", _CLUSTER)
    proxy_connections: float = _from(
        4096, "connections of a process of nginx, of which a request takes two", "", "deploy/nginx/nginx.conf")
    cache_pieces: float = _from(
        80_000, "pieces that its cache knows: a keys_zone of 10 MB, 8,000 keys in each", "",
        "deploy/nginx/nginx.conf, https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_cache_path")
    link_gbit_s: float = _from(1, "what a balancer's network link carries", "Gbit/s", "an assumption")
    gpu_notes_per_s: float = _from(0, "composed by a GPU; 0: not known, none was at hand", "notes/s", "an option")
    # fmt: on


DEFAULTS = Inputs()


class Plan(NamedTuple):
    """What so many requests a second take; replicas and memory in GiB by the cores of a replica."""

    requests_per_s: float
    notes_per_s: float
    cores: int
    replicas: dict[int, int]
    memory_gib: dict[int, float]
    under_way: float
    out_mbit_s: float
    log_gb_a_day: float
    cores_behind_cache: dict[float, int]
    gpus: int | None


class Limit(NamedTuple):
    """What comes to its end, at how many requests a second, and what then."""

    requests_per_s: float
    what: str
    then: str


def at_share(inputs: Inputs, at_50: float, at_80: float) -> float:
    """Return a figure at the planned share of the saturation, on the line between those at 50 % and at 80 %.

    Raises
    ------
    ValueError
        If the share is not between these.
    """
    if not 0.5 <= inputs.share <= 0.8:
        raise ValueError(f"`share` must be in [0.5, 0.8], where latency was measured; got {inputs.share:g}")
    return at_50 + (at_80 - at_50) * (inputs.share - 0.5) / 0.3


def p50_ms(inputs: Inputs) -> float:
    """Return the median latency at the planned share."""
    return at_share(inputs, inputs.p50_ms_at_50, inputs.p50_ms_at_80)


def p95_ms(inputs: Inputs) -> float:
    """Return the 95th percentile of the latency at the planned share."""
    return at_share(inputs, inputs.p95_ms_at_50, inputs.p95_ms_at_80)


def web_requests_per_s(inputs: Inputs) -> float:
    """Return how many pieces a second the one web process of a replica could read, write and send, if it did nothing else."""
    return 1e6 / inputs.web_us


def replica_requests_per_s(inputs: Inputs, cores: float) -> float:
    """Return the requests a second to plan for with a replica of so many cores: what they compose, or its web process sends."""
    composed = cores * inputs.notes_per_s / inputs.cores / inputs.request_notes
    return inputs.share * min(composed, web_requests_per_s(inputs))


def memory_mib(inputs: Inputs, cores: float) -> float:
    """Return the memory of a replica of so many cores."""
    return inputs.memory_mib + inputs.core_mib * (cores - inputs.cores)


def doublings(few: float, many: float) -> int:
    """Return how often few must be doubled to be many."""
    return max(0, math.ceil(math.log2(many / few)))


def make_plan(requests_per_s: float, inputs: Inputs) -> Plan:
    """Return what so many requests a second take."""
    cores = requests_per_s / replica_requests_per_s(inputs, 1)
    replicas = {size: math.ceil(requests_per_s / replica_requests_per_s(inputs, size)) for size in REPLICA_CORES}
    notes_per_s = requests_per_s * inputs.request_notes
    gpu = inputs.gpu_notes_per_s * inputs.share
    return Plan(
        requests_per_s=requests_per_s,
        notes_per_s=notes_per_s,
        cores=math.ceil(cores),
        replicas=replicas,
        memory_gib={size: number * memory_mib(inputs, size) * MIB / GIB for size, number in replicas.items()},
        under_way=requests_per_s * p50_ms(inputs) / 1000,
        out_mbit_s=requests_per_s * inputs.answer_bytes * 8 / 1e6,
        log_gb_a_day=requests_per_s * inputs.log_bytes * DAY_S / 1e9,
        cores_behind_cache={found: math.ceil(round(cores * (1 - found), 9)) for found in FOUND},
        gpus=math.ceil(notes_per_s / gpu) if gpu else None,
    )


def limits(inputs: Inputs) -> list[Limit]:
    """Return what comes to its end as requests become more, the first one first."""
    pod, largest = inputs.pod_cores, max(REPLICA_CORES)
    found = [
        Limit(replica_requests_per_s(inputs, 1), "one core", "a second core"),
        Limit(replica_requests_per_s(inputs, pod), f"one pod of {pod:g} cores", "more pods"),
        Limit(
            inputs.max_pods * replica_requests_per_s(inputs, pod),
            f"the autoscaler's {inputs.max_pods:g} pods",
            "raise `maxReplicas`, after a look at what it costs",
        ),
        Limit(
            inputs.proxy_connections / 2 / (p50_ms(inputs) / 1000),
            f"the {inputs.proxy_connections:,.0f} connections of one process of nginx",
            "more cores for nginx, which starts a process on each; more of `worker_connections`",
        ),
        Limit(
            inputs.link_gbit_s * 1e9 / (8 * inputs.answer_bytes),
            f"a balancer's link of {inputs.link_gbit_s:g} Gbit/s",
            "a wider one, or several balancers behind one name",
        ),
    ]
    if inputs.share * web_requests_per_s(inputs) < largest * replica_requests_per_s(inputs, 1):
        then = "smaller replicas, more of them"
        found.append(Limit(replica_requests_per_s(inputs, largest), f"the web process of a replica of {largest} cores", then))
    return sorted(found)


def passed(size: float, inputs: Inputs) -> list[Limit]:
    """Return what comes to its end on the way to a size from the one below it in SIZES."""
    below = max((other for other in SIZES if other < size), default=0)
    return [limit for limit in limits(inputs) if below < limit.requests_per_s <= size]


def figure(value: float) -> str:
    """Return a number with three significant digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def exactly(value: float) -> str:
    """Return a number with all its digits."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,g}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def paragraph(text: str) -> str:
    """Return a text in lines."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def plan_table(inputs: Inputs) -> str:
    """Return what each size takes."""
    sizes, shares = ", ".join(map(str, REPLICA_CORES)), ", ".join(f"{100 * found:g}" for found in FOUND)
    head = ["requests/s", "notes/s", "cores", f"or replicas of {sizes} cores", "their memory, GiB", "under way", "out, Mbit/s"]
    head += ["log, GB a day", f"cores behind a cache that answers {shares} %", *(["or GPUs"] if inputs.gpu_notes_per_s else [])]
    rows = []
    for plan in (make_plan(size, inputs) for size in SIZES):
        row = [exactly(plan.requests_per_s), exactly(plan.notes_per_s), exactly(plan.cores)]
        row += ["; ".join(map(exactly, plan.replicas.values())), "; ".join(map(figure, plan.memory_gib.values()))]
        row += [figure(plan.under_way), figure(plan.out_mbit_s), figure(plan.log_gb_a_day)]
        row += ["; ".join(map(exactly, plan.cores_behind_cache.values())), *([] if plan.gpus is None else [exactly(plan.gpus)])]
        rows.append(row)
    return markdown(head, rows)


def figures(inputs: Inputs) -> dict[str, str]:
    """Return the numbers of the texts below, by the names that they have there."""
    plans = {size: make_plan(size, inputs) for size in SIZES}
    found: dict[str, float] = {f.name: getattr(inputs, f.name) for f in fields(Inputs)}
    core_notes = inputs.notes_per_s / inputs.cores
    found |= {"core_notes": core_notes, "measured": inputs.notes_per_s / inputs.request_notes}
    found |= {"p50": p50_ms(inputs), "p95": p95_ms(inputs), "core": replica_requests_per_s(inputs, 1)}
    found |= {"busy": web_requests_per_s(inputs) * inputs.request_notes / core_notes, "cheap": 1e6 / inputs.cheap_us}
    for size, plan in plans.items():
        pods = math.ceil(size / replica_requests_per_s(inputs, inputs.pod_cores))
        steps = doublings(inputs.min_pods, pods)
        found |= {f"cores_{size}": plan.cores, f"pods_{size}": pods, f"probes_{size}": pods / inputs.probe_s}
        found |= {f"log_{size}": plan.log_gb_a_day, f"way_{size}": plan.under_way, f"out_{size}": plan.out_mbit_s / 1000}
        found |= {f"steps_{size}": steps, f"grow_{size}": steps * inputs.double_s, f"series_{size}": pods * inputs.series}
        found |= {f"samples_{size}": pods * inputs.series / inputs.scrape_s, f"missed_{size}": size * (1 - FOUND[1])}
        found |= {f"left_{100 * share:g}_{size}": cores for share, cores in plan.cores_behind_cache.items()}
        found[f"kept_{size}"] = inputs.cache_pieces / found[f"missed_{size}"]
    return {name: figure(value) for name, value in found.items()} | {"share": f"{100 * inputs.share:g} %"}


METHOD = (
    "A core composes {core_notes} notes/s over HTTP, of which {share} are planned for; at that, on the line between what was "
    "measured at 50 % and at 80 %, p95 is {p95} ms. Replicas share nothing, so they add up; but each has one web process, which "
    "takes {web_us} us for a piece and so keeps no more than {busy} cores busy. A request takes {request_notes} notes, is under "
    "way for the p50 of {p50} ms, sends {answer_bytes} bytes and logs {log_bytes}."
)
BASIS = (
    "Measured: what one machine of {cores} cores does, up to {measured} requests/s, and the bytes, microseconds and MiB of the "
    "last table; the memory of 4 and 16 cores on those {cores}, which stood in for them. Computed: all else, as if requests came "
    "at this rate all day, and evenly to all replicas. No cluster was ever run, nor a replica of more cores; other processors "
    "have another speed."
)
FIRST = {
    10: "Nothing: one core serves {core}. The second pod is there so that one may fail.",
    100: (
        "The single machine. {pods_100} pods do it, and one more so that one may fail. Rather replicas of 2 to 8 cores than of "
        "16, since one web process keeps {busy} busy."
    ),
    1_000: (
        "The cost of {cores_1000} cores; and the autoscaler, which stops before. Then the log, {log_1000} GB a day: where the "
        "balancer writes one, `NOCTURNE_ACCESS_LOG=off`. Health checks: {pods_1000} pods are asked {probes_1000} times a "
        "second, each by the machine it runs on; a balancer that asks for itself asks every pod from each of its own machines, "
        "so give it a longer interval. New replicas: from {min_pods} pods to {pods_1000} takes {steps_1000} doublings, "
        "{grow_1000} s at least, and on a new machine the image is fetched first (not measured); meanwhile the queues of the "
        "others fill and answer 503. Set `minReplicas` to what the quietest hour needs, not to {min_pods}."
    ),
    10_000: (
        "The cost again: {cores_10000} cores, {log_10000} GB of log a day. At the balancer {way_10000} requests are under way, "
        "each with a connection to its client and one to a pod. An answer of 304 takes the web process {cheap_us} us, and one "
        "that refuses is likely to take as much (not measured): {cheap} of them a second take a pod a whole core, so limit "
        "clients before they come that far."
    ),
    100_000: (
        "Cores, so a cache first: {cores_100000} without one, {left_90_100000} if it answers 90 %, {left_99_100000} at 99 %. "
        "Only a GET that names its seed and its model is answered by it for good, and only if somebody has asked for the same: "
        "what share that is, is up to the clients, and unknown. At 90 % there are {missed_100000} new pieces a second, and the "
        "cache of nginx.conf forgets each after {kept_100000} s: it needs more keys and more disk, or a content delivery "
        "network. Then the balancers, several behind one name: {way_100000} requests under way, {out_100000} Gbit/s. Then "
        "Prometheus: {pods_100000} pods have {series_100000} series, {samples_100000} samples a second; a server for each part "
        "of the pods, or larger pods. Then, where cores cannot be had or paid for, GPUs."
    ),
}
NO_GPU = "How many GPUs would do is unknown: none was at hand to measure. `--gpu-notes-per-s` puts them into the table."


def first_to_break(inputs: Inputs) -> str:
    """Return what breaks first at each size."""
    known, paragraphs = figures(inputs), []
    for size, text in FIRST.items():
        ends = "; ".join(f"{limit.what}, at {figure(limit.requests_per_s)}" for limit in passed(size, inputs))
        on_the_way = f"On the way there ends: {ends}. " if ends else ""
        paragraphs.append(paragraph(f"**{exactly(size)} requests/s.** {on_the_way}{text.format(**known)}"))
    return "\n".join([*paragraphs, *([] if inputs.gpu_notes_per_s else [paragraph(NO_GPU)])])


def inputs_table(inputs: Inputs) -> str:
    """Return every input with its source."""
    rows = []
    for one in fields(Inputs):
        value, about = getattr(inputs, one.name), one.metadata
        source = about["source"] if value == one.default else "given"
        rows.append((about["what"], f"{exactly(value)} {about['unit']}".strip(), source, f"`{option(one.name)}`"))
    return markdown(("", "value", "from", "option"), rows)


def limits_table(inputs: Inputs) -> str:
    """Return what comes to its end, and when."""
    rows = [(figure(limit.requests_per_s), limit.what, limit.then) for limit in limits(inputs)]
    return markdown(("requests/s", "what comes to its end", "what then"), rows)


def render(inputs: Inputs) -> str:
    """Return all of it as Markdown."""
    known = figures(inputs)
    given = [f" {option(f.name)} {getattr(inputs, f.name):.12g}" for f in fields(Inputs) if getattr(inputs, f.name) != f.default]
    return (
        f"```sh\npython -m bench.capacity{''.join(given)}\n```\n\n{plan_table(inputs)}\n"
        f"{paragraph(METHOD.format(**known))}\n{paragraph(BASIS.format(**known))}\n"
        f"## What breaks first\n\n{limits_table(inputs)}\n{first_to_break(inputs)}\n"
        f"## What it is computed from\n\n{inputs_table(inputs)}"
    )


def option(name: str) -> str:
    """Return the option of an input."""
    return "--" + name.replace("_", "-")


def http_figures(printed: Mapping[str, Any]) -> dict[str, float]:
    """Return the inputs that stand in the last line of `bench.http`."""
    runs = printed["runs"]
    (closed,) = (run for name, run in runs.items() if name.startswith("HTTP, closed loop"))
    opened = {share: run for share in (50, 80) for name, run in runs.items() if name.startswith(f"HTTP, open loop, {share}%")}
    (cores,) = re.findall(r", (\d+) cores", printed["machine"])
    found = {"notes_per_s": closed["notes_per_s"], "cores": float(cores), "memory_mib": printed["rss_mib"]}
    return found | {f"{p}_ms_at_{share}": run[p] for share, run in opened.items() for p in ("p50", "p95")}


def last_line(path: Path) -> Any:
    """Return the JSON of the last line of a file."""
    return json.loads(path.read_text(encoding="utf-8").splitlines()[-1])


def read_inputs(options: argparse.Namespace) -> Inputs:
    """Return the defaults, or what files say instead, or options instead of both.

    Raises
    ------
    ValueError
        If a figure is not more than 0, of which there is something always.
    """
    names = [one.name for one in fields(Inputs)]
    found = http_figures(last_line(options.http)) if options.http else {}
    if options.measured:
        found |= {name: value for name, value in last_line(options.measured).items() if name in names}
    found |= {name: value for name in names if (value := getattr(options, name)) is not None}
    for name, value in found.items():
        if value < 0 or (not value and getattr(DEFAULTS, name)):
            raise ValueError(f"`{option(name)}` must be more than 0; got {value:g}")
    return replace(DEFAULTS, **found)


def between(page: str) -> tuple[str, str, str]:
    """Return a page in three parts: up to and with its first marker, what stands between, from the other marker on."""
    before, begin, rest = page.partition(BEGIN)
    inside, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page must have the lines {BEGIN.strip()} and {END.strip()}")
    return before + begin, inside, end + after


def write_page(text: str) -> None:
    """Put what is printed between the markers of the page."""
    before, _, after = between(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[HTTPResponse, bytes]:
    """Return the answer to one request, and its body."""
    with closing(HTTPConnection(HOST, port, timeout=90)) as connection:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response, response.read()


def measure_answers(port: int, pid: int, jobs: Sequence[Job]) -> dict[str, float]:
    """Return the mean bytes of an answer, its head included, and of its line in the log."""
    log = f"/proc/{pid}/fd/2"
    before = os.stat(log).st_size

    def size(job: Job) -> int:
        response, body = ask(port, "POST", "/generate", encode_body(job), **{"Content-Type": "application/json"})
        assert response.status == 200, body
        head = len(f"HTTP/1.1 200 {response.reason}\r\n\r\n")
        return head + sum(len(name) + len(value) + 4 for name, value in response.getheaders()) + len(body)

    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(size, jobs))
    return {"answer_bytes": statistics.mean(sizes), "log_bytes": (os.stat(log).st_size - before) / len(jobs)}


def measure_cheap(port: int, pid: int, job: Job) -> float:
    """Return the microseconds of processor time that the worker takes for a 304."""
    response, _ = ask(port, "GET", f"/generate?seed={job.random_seed}&length={job.length}")
    path = f"/generate?seed={job.random_seed}&length={job.length}&model={response.headers['Nocturne-Model']}"
    tag = ask(port, "GET", path)[0].headers["ETag"]
    with closing(HTTPConnection(HOST, port, timeout=30)) as connection:
        before = _worker_s(pid)
        for _ in range(CHEAP_ANSWERS):
            connection.request("GET", path, headers={"If-None-Match": tag})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 304
        return (_worker_s(pid) - before) / CHEAP_ANSWERS * 1e6


def _worker_s(pid: int) -> float:
    return next(usage.processor_s for usage in read_usage(pid) if usage.depth == 1)


def measure_memory(model: Path, cores: int) -> float:
    """Return the MiB of worker and engine after all slots of so many cores, real or not, were taken twice."""
    clients = cores * ServiceConfig().slots + 8
    with running_service(model, NOCTURNE_CORES=str(cores), NOCTURNE_ACCESS_LOG="off") as (port, pid):
        samples = run_load(port, draw_jobs(2 * clients, cores), clients=clients)
        assert all(sample.ok for sample in samples)
        return sum(usage.rss_mib for usage in read_usage(pid) if usage.depth)


def measure(model: Path) -> None:
    """Measure what no other benchmark does, and print it."""
    jobs = [job._replace(length=int(DEFAULTS.request_notes)) for job in draw_jobs(ANSWERS, 0)]
    admin = free_port()
    with running_service(model, ADMIN_PORT=str(admin)) as (port, pid):
        found = measure_answers(port, pid, jobs)
        found["cheap_us"] = measure_cheap(port, pid, jobs[0])
        found["series"] = len(read_metrics(admin))
    memory = {cores: measure_memory(model, cores) for cores in MEMORY_CORES}
    found["core_mib"] = statistics.linear_regression(list(memory), list(memory.values())).slope
    rows = [(one.metadata["what"], found[one.name], one.metadata["unit"]) for one in fields(Inputs) if one.name in found]
    show(f"{model.name}: {ANSWERS} answers", ("", "", ""), rows)
    show("Memory of worker and engine", ("cores", "MiB"), [(str(cores), mib) for cores, mib in memory.items()])
    finish({"model": model.name, **found, "memory_mib_by_cores": memory})


def make_parser() -> argparse.ArgumentParser:
    """Return the parser: an option for each input, and what to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--measure", action="store_true", help="measure what no other benchmark does; takes a minute or two")
    parser.add_argument("--http", type=Path, help="file whose last line is the JSON of bench.http")
    parser.add_argument("--measured", type=Path, help="file whose last line is the JSON of --measure")
    parser.add_argument("--write", action="store_true", help=f"put it into {PAGE.relative_to(ROOT)} too")
    for one in fields(Inputs):
        about = one.metadata
        unit = f", {about['unit']}" if about["unit"] else ""
        text = f"{about['what']}{unit}; default: {exactly(getattr(DEFAULTS, one.name))}, from: {about['source']}".replace(
            "%", "%%"
        )
        parser.add_argument(option(one.name), type=float, metavar="X", help=text)
    return parser


def main() -> None:
    parser = make_parser()
    options = parser.parse_args()
    if options.measure:
        measure(options.model)
        return
    try:
        text = render(read_inputs(options))
    except ValueError as error:
        parser.error(str(error))
    if options.write:
        write_page(text)
    print(text, end="")


if __name__ == "__main__":
    main()
