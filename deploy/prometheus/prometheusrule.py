"""Write the alerts as the Prometheus operator reads them: `python deploy/prometheus/prometheusrule.py`.

A PrometheusRule is alerts.yml, indented, below a head; needs the standard library only.
"""

import textwrap
from pathlib import Path

SOURCE = Path(__file__).with_name("alerts.yml")
TARGET = Path(__file__).parents[1] / "kubernetes/components/monitoring/prometheusrule.yaml"
_HEAD = """\
# Written from deploy/prometheus/alerts.yml by deploy/prometheus/prometheusrule.py; change the one and run the other.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: nocturne
  namespace: nocturne
  labels:
    app.kubernetes.io/name: nocturne
spec:
"""


def prometheus_rule() -> str:
    """Return the manifest."""
    alerts = SOURCE.read_text(encoding="utf-8")
    return _HEAD + textwrap.indent(alerts[alerts.index("groups:") :], "  ")


if __name__ == "__main__":
    TARGET.write_text(prometheus_rule(), encoding="utf-8")
