"""The service runs without what only training needs."""

import subprocess
import sys

PROGRAM = """
import sys
import service.web.app, service.engine.worker
print(*[name for name in ("torch", "muspy", "music21", "symusic", "onnx", "training") if name in sys.modules])
"""

WEB_PROGRAM = """
import sys
import service.web.app
print(*[name for name in ("onnxruntime",) if name in sys.modules])
"""


def _imported(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_neither_torch_nor_muspy_nor_training_is_imported() -> None:
    assert _imported(PROGRAM) == ""


def test_only_the_engines_process_loads_onnxruntime() -> None:
    assert _imported(WEB_PROGRAM) == ""
