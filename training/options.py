"""Settings as dataclass fields, their help beside them, so that the command line is made from the dataclass."""

from dataclasses import field
from typing import Any


def option(default: Any, help: str) -> Any:
    """Return a dataclass field whose help becomes that of the command line."""
    return field(default=default, metadata={"help": help})
