"""What gunicorn loads: the application with the settings of the environment.

Imported in gunicorn's worker, after it forked, since it starts the engine.
"""

import os

from gunicorn.errors import AppImportError  # type: ignore[import-untyped]

from service.config import InvalidSetting, ServiceConfig
from service.errors import NocturneError
from service.web.app import create_app
from service.web.telemetry import start_tracing

try:
    tracing = start_tracing(os.environ)
    app = create_app(ServiceConfig.from_environment(os.environ), tracing=tracing)
except (InvalidSetting, NocturneError) as error:
    raise AppImportError(str(error)) from None  # gunicorn prints the sentence, without a traceback, and stops
