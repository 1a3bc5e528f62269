"""The page /metrics, read."""

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families


def families(text: str) -> dict[str, Metric]:
    """Return what stands there, by name."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def plain_values(text: str) -> dict[str, float]:
    """Return the value of every sample without labels, by name."""
    return {s.name: s.value for family in families(text).values() for s in family.samples if not s.labels}
