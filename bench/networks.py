"""Our network beside others that lack one thing, each trained for as long on the same pieces: nats per note of the valid split.

    python -m bench.networks ours data/piano.npz --out runs/compare/ours [--steps 560]

`ours` and `parallel` and so on, as in VARIANTS. The scores go to scores.npz in the run's folder, for `evaluate --scores`; the
last line is JSON, with the notes per second of its inference graph (float32, one thread, 1 and 32 rows) where it has one.
`--steps 0` measures only that. All see the same pieces in the same order.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.engine import SLOTS, compose_all
from service.engine.interface import LAGS
from service.engine.model import METADATA_KEY, OnnxModel
from service.engine.sampling import Sequence
from service.music.representation import FIELDS, VOCABULARY
from training.checkpoint import BEST, load_checkpoint
from training.data import load_dataset
from training.export import describe
from training.fit import FitConfig, Progress, fit
from training.graph import build_graph
from training.memory import EMPTY
from training.model import HANDS, LAST_FIELDS, Batch, ModelConfig, Network, Offers
from training.score import save_score
from training.scoring import score_dataset


class ParallelHeads(Network):
    """Every field by itself: its head knows the last notes of all hands, but none of the other fields of its own token."""

    def heads(self, x: Tensor, batch: Batch, offers: Offers) -> dict[str, Tensor]:
        """Return the logits of every field."""
        logits = {}
        for name, z in zip(FIELDS, self.to_heads(x).chunk(len(FIELDS), dim=-1), strict=True):
            known = [batch.tempo] if name == "tempo" else []
            if name in LAST_FIELDS:
                known = [batch.last[..., hand, LAST_FIELDS.index(name)] for hand in range(1, HANDS)]
            for last in known:
                z = z + self.head_lasts[name](last)
            z = torch.relu(z)
            scores = self.outputs[name](z).float()
            if name == "tempo":
                index = torch.arange(VOCABULARY.tempo) - batch.tempo[..., None] + VOCABULARY.tempo - 1
                scores = scores + self.relative_outputs[name](z).float().gather(-1, index)
            if name == "pitch":
                scores = scores + self.profile_scores(z, batch.profile, self._key_profile(batch.conditions))
            logits[name] = scores
        return logits


class NoCopy(Network):
    """The memory is read by the layers above, as attention does, but its values are not offered to the heads."""

    def _copy(self, name: str, scores: Tensor, *_: object) -> Tensor:
        return scores


class NoMatch(Network):
    """The pointers know nothing of how well the passage before an offer matches the last notes."""

    def forward(self, batch: Batch, *state: object) -> tuple[dict[str, Tensor], object]:
        """Return logits and state as the network does that cannot see the match."""
        lag = torch.where(batch.classes == EMPTY, EMPTY, batch.classes % LAGS)
        return super().forward(batch._replace(classes=lag, matched=torch.zeros_like(batch.matched)), *state)


class NoContent(Network):
    """The pointers know match and lag, but do not compare what the LSTM made of the past with what it makes of now."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.sharpness.requires_grad_(False).zero_()


# By name: how the network is made, and what its configuration changes. One offer has no weight, so it switches the memory off.
NO_MEMORY = {"memory": 1, "offers": 1}
VARIANTS: dict[str, tuple[Callable[[ModelConfig], Network], dict[str, int]]] = {
    "ours": (Network, {}),
    "no_copy": (NoCopy, {}),
    "no_match": (NoMatch, {}),
    "no_content": (NoContent, {}),
    "no_memory": (Network, NO_MEMORY),
    "parallel": (ParallelHeads, NO_MEMORY),
    "narrow": (Network, {"hidden": 384}),
    "wide": (Network, {"hidden": 768}),
    "deep": (Network, {"layers": 3}),
    "short": (Network, {"memory": 256}),
}
GRAPHS = ("ours", "no_memory", "narrow", "wide", "deep", "short")  # those that training.graph can express
NAMES = {
    "ours": "this network",
    "no_copy": "attention, but no copy",
    "no_match": "pointers without the match",
    "no_content": "pointers by match and lag alone",
    "no_memory": "no memory",
    "parallel": "LSTM with parallel heads",
    "narrow": "two layers of 384",
    "wide": "two layers of 768",
    "deep": "three layers of 512",
    "short": "memory of 256 tokens",
}
ROUNDS = 3
LENGTH = 100  # notes of the pieces that show the speed


def notes_per_second(network: Network) -> dict[int, float]:
    """Return how fast the inference graph of a network composes, by the number of rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        metadata = describe(network.eval(), {"history": [{"valid": 0.0}], "training": {}, "commit": ""}, None, "", "")
        path.write_bytes(build_graph(network, {METADATA_KEY: json.dumps(metadata)}).SerializeToString())
        model = OnnxModel(path)
        pieces = [Sequence(seed, LENGTH) for seed in range(SLOTS)]
        compose_all(model, pieces, SLOTS)  # warm-up
        rounds = [[compose_all(model, pieces, rows) for rows in (1, SLOTS)] for _ in range(ROUNDS)]
    medians = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    return {rows: round(SLOTS * LENGTH / seconds) for rows, seconds in zip((1, SLOTS), medians, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=560)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    options = parser.parse_args()
    dataset = load_dataset(options.data)
    make, changes = VARIANTS[options.variant]
    shape = replace(ModelConfig(conditions=dataset.conditions), **changes)
    how = FitConfig(
        steps=options.steps, rows=options.rows, learning_rate=options.learning_rate, warmup=100, ema=0.99, evaluate_every=10**9
    )

    def report(progress: Progress) -> None:
        if progress.step % 20 == 0:
            print(
                f"step {progress.step}/{progress.steps}  {progress.train_nats:.3f}  {progress.notes_per_s:,.0f} notes/s",
                flush=True,
            )

    if not options.steps:
        print(json.dumps({"variant": options.variant, "notes_per_s": notes_per_second(make(shape))}))
        return
    last = fit(dataset, options.out, shape, how, report, make=make)
    network = make(shape)
    network.load_state_dict(load_checkpoint(options.out / BEST)["network"])
    score = score_dataset(network, dataset.select("valid"), with_conditions=False)
    parameters = sum(p.numel() for p in network.parameters())
    about = f"{NAMES[options.variant]}, {parameters / 1e6:.2f} million parameters, {last['notes'] / 1e6:.2f} million notes"
    save_score(options.out / "scores.npz", score, about)
    figures = {"nats_per_note": score.nats_per_note, "fields": score.fields, "notes": last["notes"], "parameters": parameters}
    if options.variant in GRAPHS:
        figures["notes_per_s"] = notes_per_second(network)
    print(json.dumps({"variant": options.variant, **figures}))


if __name__ == "__main__":
    main()
