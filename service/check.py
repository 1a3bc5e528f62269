"""Whether the service can start with the settings and files as they are now: `python -m service.check`.

Starts an engine, loads every model, and ends. gunicorn's master asks this before a SIGHUP replaces a worker that runs.
"""

import os
import sys

from service.config import InvalidSetting, ServiceConfig
from service.errors import NocturneError
from service.web.app import create_app
from service.web.telemetry import start_tracing


def main() -> int:
    """Print that the service can start, or why not."""
    try:
        start_tracing(os.environ).close()
        app = create_app(ServiceConfig.from_environment(os.environ))
    except (InvalidSetting, NocturneError) as error:
        print(error, file=sys.stderr)
        return 1
    engine = app.extensions["engine"]
    engine.close()
    print(f"the service can start with {', '.join(model.name for model in engine.models)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
