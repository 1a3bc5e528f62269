"""The files of exported models, and whether they are what was exported.

Beside `NAME.onnx` may lie `NAME.onnx.sha256`, a line as `sha256sum` writes it, from `training export`. If it does, it must agree.
"""

import hashlib
import re
from pathlib import Path

from service.errors import ModelMismatch

_LINE = re.compile(r"([0-9a-f]{64}) [ *](\S+)\n?")


def hash_path(model: Path) -> Path:
    """Return where the hash of a model's file is noted."""
    return model.with_name(f"{model.name}.sha256")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_line(model: Path) -> str:
    """Return what `sha256sum` prints for a model's file."""
    return f"{file_hash(model)}  {model.name}\n"


def checked_hash(model: Path) -> str:
    """Return the SHA-256 of a model's file, in hexadecimal digits.

    Raises
    ------
    ModelMismatch
        If it cannot be read, or is not the file whose hash is noted beside it.
    """
    try:
        found = file_hash(model)
        noted = hash_path(model).read_text(encoding="ascii", errors="replace") if hash_path(model).exists() else None
    except OSError as error:
        raise ModelMismatch(f"{model} cannot be read: {error.strerror or error}") from error
    if noted is not None:
        line = _LINE.fullmatch(noted)
        if line is None or line[2] != model.name:
            raise ModelMismatch(f"{hash_path(model)} must be what `sha256sum {model.name}` prints; got {noted.strip()[:100]!r}")
        if line[1] != found:
            raise ModelMismatch(f"{model} is not the file that was exported: its SHA-256 is {found}, beside it stands {line[1]}")
    return found
