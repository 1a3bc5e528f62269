"""The settings of the service, read once from environment variables; nothing else in the service reads the environment.

Every setting is a field of `ServiceConfig` whose metadata holds the variable, the limits, the unit and the reason; the README's
table and the messages follow from it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from service.cores import available_cores

PROVIDERS = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "int8")
_INT8 = ".int8"  # before the .onnx of a model's int8 form
FIRST_MODEL = "nocturne"  # so that another one put beside it does not take its place
MAX_NOTES_PER_MINUTE = 10**9
SPARE_THREADS = 32  # for probes, documents and refusals while every place in the engine and its queue is taken
_EXPORTED = Path(__file__).resolve().parents[1] / "exported"

# Kubernetes and Docker put variables like NOCTURNE_SERVICE_HOST and NOCTURNE_PORT_8080_TCP_ADDR into every container beside a
# service that is named "nocturne". They are not ours and no reason to refuse the start.
_INJECTED = re.compile(r"NOCTURNE_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\w+)?)")
_ORIGIN = re.compile(r"\*|https?://(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?")  # as browsers write them (RFC 6454)


class InvalidSetting(ValueError):
    """An environment variable that is unknown or holds a value outside its limits; the message names all three."""


def _about(variable: str, unit: str, why: str, low: int = 0, high: int = 0, choices: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"variable": variable, "unit": unit, "why": why, "low": low, "high": high, "choices": choices}


@dataclass(frozen=True)
class ServiceConfig:
    """How the service runs.

    Attributes
    ----------
    host, port : str, int
        Where gunicorn listens.
    admin_port : int
        Where probes and metrics are answered besides; 0 means nowhere.
    model_dir : Path
        Folder with the exported models.
    model : str
        Name of the model that composes unless a request names another, a file of that folder without ".onnx"; "" means
        `FIRST_MODEL`, or the only one there.
    provider : str
        "auto" takes a CUDA device if there is one.
    precision : str
        "auto" takes the int8 form of the model on the CPU, if there is one, and float32 else.
    cores : int
        Batches composed at the same time; 0 means `available_cores()`.
    slots : int
        Pieces composed at the same time in each of them.
    max_waiting : int
        Requests that may wait for a slot.
    chunk : int
        Notes that one run of the model composes for every slot.
    deadline_s : int
        Seconds that a request may take.
    max_body_bytes : int
        Largest request body.
    api_keys_file : Path, optional
        The API keys of those who may compose; None lets everybody.
    notes_per_minute : int
        What each client may ask for; 0 sets no limit.
    proxies : int
        In front of the service; each adds an address to X-Forwarded-For.
    cors_origins : tuple of str
        Whose pages may call the service from a browser.
    access_log : str
        "json": a line for each request, on the standard error stream.
    threads : int
        Threads of gunicorn, one for each request in flight; 0 means `cores * slots + max_waiting + SPARE_THREADS`.
    """

    # fmt: off
    host: str = field(default="127.0.0.1", metadata=_about(
        "HOST", "address", "this machine only, unless asked otherwise; the image says 0.0.0.0"))
    port: int = field(default=8000, metadata=_about(
        "PORT", "TCP port", "the image says 8080", 1, 65535))
    admin_port: int = field(default=0, metadata=_about(
        "ADMIN_PORT", "TCP port", "for probes and metrics, answered however busy the service is; 0 means none", 0, 65535))
    model_dir: Path = field(default=_EXPORTED, metadata=_about(
        "NOCTURNE_MODEL_DIR", "folder", "where the exported models lie"))
    model: str = field(default="", metadata=_about(
        "NOCTURNE_MODEL", "name", "of the model for requests that name none, a file of that folder without .onnx; empty: "
        f"{FIRST_MODEL}, or the only one there"))
    provider: str = field(default="auto", metadata=_about(
        "NOCTURNE_PROVIDER", "auto, cpu or cuda", "auto takes a CUDA device if there is one", choices=PROVIDERS))
    precision: str = field(default="auto", metadata=_about(
        "NOCTURNE_PRECISION", "auto, float32 or int8", "auto takes int8 on the CPU, where the model has it: as good, and faster",
        choices=PRECISIONS))
    cores: int = field(default=0, metadata=_about(
        "NOCTURNE_CORES", "cores", "that compose, each a batch of its own; 0 means all that this process may use", 0, 1024))
    slots: int = field(default=32, metadata=_about(
        "NOCTURNE_SLOTS", "pieces", "composed at the same time by each core: the rows of its batch", 1, 1024))
    max_waiting: int = field(default=256, metadata=_about(
        "NOCTURNE_QUEUE", "requests", "may wait for a slot; the next one is answered 503", 1, 100_000))
    chunk: int = field(default=16, metadata=_about(
        "NOCTURNE_CHUNK", "notes", "per run of the model: more is faster, fewer lets requests start sooner", 1, 256))
    deadline_s: int = field(default=60, metadata=_about(
        "NOCTURNE_DEADLINE_S", "seconds", "a request may take before it is answered 504", 1, 3600))
    max_body_bytes: int = field(default=2**20, metadata=_about(
        "NOCTURNE_MAX_BODY_BYTES", "bytes", "of a request body, which bounds what a request costs to read", 1024, 2**30))
    api_keys_file: Path | None = field(default=None, metadata=_about(
        "NOCTURNE_API_KEYS_FILE", "file", "the API keys of those who may compose, as `python -m service.keys` writes them; "
        "empty: everybody may"))
    notes_per_minute: int = field(default=0, metadata=_about(
        "NOCTURNE_NOTES_PER_MINUTE", "notes", "that each client, known by its key or its address, may ask for in a minute; 0: as "
        "many as it likes", 0, MAX_NOTES_PER_MINUTE))
    proxies: int = field(default=0, metadata=_about(
        "NOCTURNE_PROXIES", "proxies", "in front of the service, whose X-Forwarded-For is believed", 0, 16))
    cors_origins: tuple[str, ...] = field(default=(), metadata=_about(
        "NOCTURNE_CORS_ORIGINS", "origins", "whose pages may call the service from a browser, as https://example.org, with "
        "commas between; * for all"))
    access_log: str = field(default="json", metadata=_about(
        "NOCTURNE_ACCESS_LOG", "json or off", "a line for each request, on stderr; without probes", choices=("json", "off")))
    threads: int = field(default=0, metadata=_about(
        "NOCTURNE_THREADS", "threads", "one a request in flight; more than the queue and all cores' slots together, so that "
        f"the queue refuses and not the threads; 0 means these and {SPARE_THREADS} more", 0, 200_000))
    # fmt: on

    def __post_init__(self) -> None:
        if not self.cores:
            object.__setattr__(self, "cores", available_cores())
        needed = self.max_waiting + self.cores * self.slots
        if not self.threads:
            object.__setattr__(self, "threads", needed + SPARE_THREADS)
        if self.threads <= needed:
            raise InvalidSetting(
                f"`NOCTURNE_THREADS` must be more than NOCTURNE_QUEUE and NOCTURNE_CORES times NOCTURNE_SLOTS ({needed}); "
                f"got {self.threads}"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "ServiceConfig":
        """Read the settings; a variable that is not set, or empty, takes its default.

        Raises
        ------
        InvalidSetting
            If a value is outside its limits, or a variable NOCTURNE_* is no setting.
        """
        variables = {f.metadata["variable"]: f for f in fields(cls)}
        for name in sorted(environment):
            if name.startswith("NOCTURNE_") and name not in variables and not _INJECTED.fullmatch(name):
                near = get_close_matches(name, variables, n=1)
                raise InvalidSetting(f"`{name}` is not a setting" + (f"; did you mean `{near[0]}`?" if near else ""))
        given = {f.name: _parse(f.metadata, f.type, environment[v]) for v, f in variables.items() if environment.get(v)}
        return cls(**given)

    @property
    def bind(self) -> str:
        """Return the address as gunicorn takes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def model_paths(self, on_gpu: bool) -> tuple[Path, ...]:
        """Return the files of the models to serve, each in one of its forms; first the one for requests that name none.

        Parameters
        ----------
        on_gpu : bool
            Whether they will run on one, where int8 does not.

        Raises
        ------
        InvalidSetting
            If the folder holds none, or several and it is not clear which one is the first; or not in the precision asked for.
        """
        names = sorted({path.stem.removesuffix(_INT8) for path in self.model_dir.glob("*.onnx")})
        if not names:
            raise InvalidSetting(f"`NOCTURNE_MODEL_DIR` must be a folder with exported models (*.onnx); got {self.model_dir}")
        if self.model and self.model not in names:
            raise InvalidSetting(f"`NOCTURNE_MODEL` must be one of {', '.join(names)}; got {self.model}")
        if not self.model and len(names) > 1 and FIRST_MODEL not in names:
            raise InvalidSetting(f"`NOCTURNE_MODEL` must be one of {', '.join(names)}; it is not set")
        first = self.model or (FIRST_MODEL if FIRST_MODEL in names else names[0])
        if self.precision == "int8" and on_gpu:
            raise InvalidSetting("`NOCTURNE_PRECISION` must be auto or float32 on a GPU; got int8")
        return tuple(self._form(name, on_gpu) for name in sorted(names, key=lambda name: name != first))

    def _form(self, name: str, on_gpu: bool) -> Path:
        """Return the file of a model in the precision that is served."""
        forms = {"float32": self.model_dir / f"{name}.onnx", "int8": self.model_dir / f"{name}{_INT8}.onnx"}
        there = [precision for precision, path in forms.items() if path.exists()]
        if self.precision != "auto" and self.precision not in there:
            raise InvalidSetting(f"`NOCTURNE_PRECISION` must be {' or '.join(there)} for the model {name}; got {self.precision}")
        wanted = self.precision if self.precision != "auto" else "float32" if on_gpu else "int8"
        return forms[wanted if wanted in there else there[0]]


def _parse(limits: Mapping[str, Any], kind: Any, text: str) -> Any:
    name = limits["variable"]
    if kind is int:
        value = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
        if value is None or not limits["low"] <= value <= limits["high"]:
            raise InvalidSetting(f"`{name}` must be a whole number in [{limits['low']}, {limits['high']}]; got {text}")
        return value
    if limits["choices"] and text not in limits["choices"]:
        raise InvalidSetting(f"`{name}` must be one of {', '.join(limits['choices'])}; got {text}")
    if kind == tuple[str, ...]:
        origins = tuple(origin.strip() for origin in text.split(","))
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise InvalidSetting(
                    f"`{name}` must be origins like https://example.org:8443, with commas between, or *; got {origin}"
                )
        return origins
    return Path(text) if kind in (Path, Path | None) else text
