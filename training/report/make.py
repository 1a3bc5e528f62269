"""`report`: compose with an exported model and say how its music compares with real music, in report.json and pictures."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from service.engine.files import file_hash
from service.engine.sampling import LAG_BIAS, SamplingParams
from training.report.asking import check_control
from training.report.comparison import compare, count_failures, look_at_form
from training.report.compose import Progress
from training.report.materials import Materials
from training.storage import write_atomically

REPORT_FOLDER, REPORT = "report", "report.json"  # beside the model
PICTURES = ("overlap.png", "distributions.png", "similarity.png", "matrices.png")


def make_report(
    model_path: Path,
    data_path: Path,
    folder: Path,
    pieces: int = 500,
    failures: int = 1000,
    controls: int = 100,
    processes: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write report.json and PICTURES.

    Parameters
    ----------
    model_path : Path
        The exported model (.onnx).
    data_path : Path
        The training file: its validation split is the yardstick, its train split what may have been copied.
    folder : Path
        Where the files go; made if needed.
    pieces : int
        Composed for the comparison with validation excerpts; a fifth as many longer ones for the form.
    failures : int
        Composed of each length for the count of faults.
    controls : int
        Composed for each of key, metre and tempo.
    processes : int
        That compose side by side. The report is the same for any number.
    progress : callable, optional
        Called with what is being done, how much of it is done, and of how much.

    Returns
    -------
    dict
        What stands in report.json.

    Raises
    ------
    ModelMismatch, InvalidDataset
        If a file cannot be used.
    """
    begun = time.monotonic()
    materials = Materials.load(model_path, data_path, processes, progress or (lambda what, done, total: None))
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "model": model_path.name,
        "sha256": file_hash(model_path),
        "data": data_path.name,
        "settings": {
            "temperature": SamplingParams.temperature,
            "min_p": SamplingParams.min_p,
            "copying": SamplingParams.copying,
            "lag_bias": LAG_BIAS.tolist(),
            **materials.metadata.get("defaults", {}),
        },
        "asked": {"pieces": pieces, "failures": failures, "controls": controls},
        **compare(materials, pieces, folder),
        "form_long": look_at_form(materials, max(2, pieces // 5), folder),
        **count_failures(materials, failures),
        "control": check_control(materials, controls),
    }
    report["seconds"] = round(time.monotonic() - begun, 1)
    report = to_json(report)
    with write_atomically(folder / REPORT) as file:
        file.write(json.dumps(report, indent=1).encode())
    return report


def to_json(value: Any) -> Any:
    """Return a value as JSON can hold it: what is not finite becomes None, numbers keep six digits."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
