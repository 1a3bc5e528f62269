"""What the service tells Prometheus, as the files of deploy/ may use it."""

from service.web.contract import Contract
from service.web.metrics import CAUSES, Metrics
from tests.contract.conftest import FakeEngine
from tests.metrics import families

_PARTS = {"gauge": ("",), "counter": ("_total",), "summary": ("_sum", "_count"), "histogram": ("_sum", "_count", "_bucket")}
_PAGE = Metrics(FakeEngine()).response().get_data(as_text=True)

# Every name that a query may use, and those of one value an instance.
SAMPLES = frozenset(name + part for name, family in families(_PAGE).items() for part in _PARTS.get(family.type, ()))
GAUGES = tuple(name for name, family in families(_PAGE).items() if family.type == "gauge")

# Every value that a query may compare these labels with.
LABEL_VALUES = {"operation": {*Contract.load().operations, "none"}, "cause": set(CAUSES)}
