"""How close a step is to what the machine allows: to read its weights, and to multiply with them.

    OMP_NUM_THREADS=1 taskset -c 0 python -m bench.roofline [MODEL.onnx ...] [--rounds 5]

All on one thread. The limits are measured in the same rounds: how fast memory is read, and how fast onnxruntime multiplies large
matrices; their best round counts, of a step the median one. The products alone are a graph of the step's own products, with
nothing between them. What a step takes beside them, it takes for its small nodes. The last line is JSON.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bench.roofline_graph import Step, open_session, read_step
from bench.shipped import add_models
from bench.tables import finish, show
from service.engine.model import OnnxModel
from service.engine.sampling import Sequence
from service.engine.scheduler import Scheduler

CHUNK = 16
BATCHES = (1, 32)
CHUNKS = 12  # in a round, for each model and batch
READS = 5  # of each array in a round
LAST_LEVEL_TIMES = 4  # as large as the last-level cache is the array that does not fit into it
LARGE = (512, 1024, 2048)  # M, K, N of the products that the peak is measured with
CONTRIB = "com.microsoft"


class TimedSession:
    """A session that adds up the seconds of its runs and remembers the last inputs; else as the one it wraps."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.seconds = 0.0
        self.feeds: dict[str, NDArray[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, outputs: Any, feeds: dict[str, NDArray[Any]]) -> Any:
        """Run once."""
        self.feeds = feeds
        started = time.perf_counter()
        results = self._session.run(outputs, feeds)
        self.seconds += time.perf_counter() - started
        return results


@dataclass
class Case:
    """A model with so many requests, and what each round measured, in microseconds a step."""

    name: str
    batch: int
    session: TimedSession
    scheduler: Scheduler
    rows: int  # that the graph computes
    step: Step
    alone: Any  # the session of the products alone
    times: list[tuple[float, float, float]]  # products alone, graph, whole step

    def measure(self) -> None:
        """Run a round."""
        self.session.seconds = 0.0
        whole = seconds(lambda: [self.scheduler.step(0.0) for _ in range(CHUNKS)])
        alone = seconds(lambda: [self.alone.run(None, self.step.feeds) for _ in range(CHUNKS)])
        scale = 1e6 / (CHUNKS * CHUNK)
        self.times.append((scale * alone, scale * self.session.seconds, scale * whole))

    def medians(self) -> tuple[float, float, float]:
        """Return the median of each."""
        alone, graph, whole = (statistics.median(column) for column in zip(*self.times, strict=True))
        return alone, graph, whole


def seconds(function: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def open_case(path: Path, batch: int) -> Case:
    """Return a model that composes for so many requests, none of which ends."""
    model = OnnxModel(path)
    model._session = session = TimedSession(model._session)  # no other way to see how many rows it is really given
    scheduler = Scheduler(model, batch, CHUNK, batch)
    for id in range(batch):
        scheduler.add(id, Sequence(id, 10**9), float("inf"))
    scheduler.step(0.0)  # warm-up
    step = read_step(path, session.feeds, CHUNK)
    alone = open_session(step.alone, optimise=False)
    alone.run(None, step.feeds)
    return Case(path.stem, batch, session, scheduler, session.feeds["forced"].shape[1], step, alone, [])


def last_level_bytes() -> int:
    """Return the size of the largest cache that a core sees, where the system tells."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size.removesuffix("K")) * 1024 for size in sizes if size.endswith("K")), default=64 * 2**20)


def read_rate(array: NDArray[np.float32]) -> float:
    """Return the bytes/s at which an array is read, by the fastest of a few reads of two kinds."""
    ways: tuple[Callable[[], Any], ...] = (array.max, lambda: array @ array)
    return array.nbytes / min(seconds(way) for _ in range(READS) for way in ways)


def large_product(int8: bool) -> onnx.ModelProto:
    """Return a graph of one product of large matrices."""
    rows, inner, columns = LARGE
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((inner, columns), np.float32)}
    if int8:
        constants["w"] = rng.integers(-63, 64, (inner, columns)).astype(np.int8)
        constants |= {"a": np.array(1, np.float32), "b": np.ones(columns, np.float32), "zero": np.array(128, np.uint8)}
        node = helper.make_node("MatMulIntegerToFloat", ["x", "w", "a", "b", "zero"], ["y"], domain=CONTRIB)
    else:
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.UINT8 if int8 else TensorProto.FLOAT, [rows, inner])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, columns])
    graph = helper.make_graph([node], "large", [x], [y], [numpy_helper.from_array(a, name) for name, a in constants.items()])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


class Machine:
    """What the machine allows at most, as the best round showed it: bytes/s and multiply-adds/s."""

    def __init__(self, cached_bytes: dict[str, int]) -> None:
        arrays = {name: np.ones(size // 4, np.float32) for name, size in cached_bytes.items()}
        self.arrays = arrays | {"memory": np.ones(LAST_LEVEL_TIMES * last_level_bytes() // 4, np.float32)}
        x = np.random.default_rng(1).integers(0, 255, LARGE[:2])
        self._products = [
            (open_session(large_product(int8)), {"x": x.astype(np.uint8 if int8 else np.float32)}) for int8 in (False, True)
        ]
        self.read = dict.fromkeys(self.arrays, 0.0)  # of an array as large as a model's weights, and of one in memory
        self.multiply = [0.0, 0.0]  # fp32, int8

    def measure(self) -> None:
        """Run a round."""
        for name, array in self.arrays.items():
            self.read[name] = max(self.read[name], read_rate(array))
        for i, (session, feeds) in enumerate(self._products):
            rate = np.prod(LARGE) / min(seconds(partial(session.run, None, feeds)) for _ in range(READS))
            self.multiply[i] = max(self.multiply[i], float(rate))

    def limits_us(self, case: Case) -> tuple[float, float, float]:
        """Return how long a step takes at least: to read its factors from memory or from cache, and to multiply them."""
        size = case.step.weight_bytes + case.step.key_bytes
        operations = sum(case.step.multiply_adds(int8) / self.multiply[int8] for int8 in (False, True))
        return 1e6 * size / self.read["memory"], 1e6 * size / self.read[case.name], 1e6 * operations


def say_what_binds(cases: list[Case], machine: Machine) -> str:
    """Return a sentence: what takes most of each step."""
    parts = []
    for case in cases:
        alone, graph, whole = case.medians()
        _, reading, multiplying = machine.limits_us(case)
        small = case.step.nodes - len(case.step.products)
        bound = f"the products, which {'reading the weights' if reading > multiplying else 'multiplying'} limits"
        shares = {f"the {small} small nodes": graph - alone, bound: alone, "the scheduler": whole - graph}
        what, most = max(shares.items(), key=lambda item: item[1])
        parts.append(f"{case.name} at batch {case.batch} by {what} ({most / whole:.0%} of the step)")
    return f"What binds: {'; '.join(parts)}."


def show_machine(machine: Machine) -> None:
    """Print what the machine allows."""
    rows = [(f"read {array.nbytes / 1e6:,.1f} MB ({name})", machine.read[name] / 1e9) for name, array in machine.arrays.items()]
    rows += [(f"multiply-adds, {name}", rate / 1e9) for name, rate in zip(("fp32", "int8"), machine.multiply, strict=True)]
    show("The machine, one thread, best of the rounds", ("", "billion bytes or multiply-adds/s"), rows)


def show_steps(cases: list[Case], machine: Machine) -> None:
    """Print how long a step takes, how long it would have to, and what it takes the time for."""
    limits, parts = [], []
    for case in cases:
        step, label, (alone, graph, whole) = case.step, f"{case.name}, {case.batch}", case.medians()
        memory, cache, operations = machine.limits_us(case)
        millions = [
            size / 1e6 for size in (step.weight_bytes, step.key_bytes, step.multiply_adds(False), step.multiply_adds(True))
        ]
        share = max(cache, operations) / whole
        limits.append((label, *millions, memory, cache, operations, alone, whole, f"{share:.1%}"))
        products, small = len(step.products), step.nodes - len(step.products)
        parts.append((label, case.rows, step.nodes, products, alone, graph - alone, (graph - alone) / small, whole - graph))
    head = ("model, batch", "weights MB", "keys MB", "fp32 million madds", "int8", "read from memory", "from cache", "operations")
    show("Limits and times of a step, us", (*head, "products alone", "whole step", "limit / step"), limits)
    print("limit: to read weights and keys from the cache, or to multiply, whichever takes longer")
    head = ("model, batch", "rows computed", "nodes", "products", "products us", "small nodes us", "each", "outside the graph us")
    show("Where the time of a step goes", head, parts)


def figures(case: Case, machine: Machine) -> dict[str, Any]:
    """Return what the tables say of a model and batch, for programs."""
    memory, cache, operations = machine.limits_us(case)
    alone, graph, whole = case.medians()
    step = case.step
    return {
        "model": case.name,
        "batch": case.batch,
        "rows": case.rows,
        "nodes": step.nodes,
        "products": len(step.products),
        "weight_bytes": step.weight_bytes,
        "key_bytes": step.key_bytes,
        "multiply_adds": {"fp32": step.multiply_adds(False), "int8": step.multiply_adds(True)},
        "limits_us": {"memory": memory, "cache": cache, "operations": operations},
        "products_us": alone,
        "graph_us": graph,
        "step_us": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models(parser)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cases = [open_case(path, batch) for path in options.models for batch in BATCHES]
    machine = Machine({case.name: case.step.weight_bytes for case in cases})
    for _ in range(options.rounds + 1):
        machine.measure()
        for case in cases:
            case.measure()
    for case in cases:
        case.times.pop(0)  # warm-up

    show_machine(machine)
    show_steps(cases, machine)
    print(f"\n{say_what_binds(cases, machine)}")
    multiply = dict(zip(("fp32", "int8"), machine.multiply, strict=True))
    steps = [figures(case, machine) for case in cases]
    finish({"read_bytes_per_s": machine.read, "multiply_adds_per_s": multiply, "steps": steps, "rounds": options.rounds})


if __name__ == "__main__":
    main()
