"""The engine of bench.request, which has composed already, does for the service what it is asked there."""

from bench.request import ReadyEngine
from service.config import ServiceConfig
from service.web.app import create_app
from tests.contract.conftest import FakeEngine


def test_the_engine_that_has_composed_already_lives() -> None:
    client = create_app(ServiceConfig(access_log="off"), ReadyEngine(FakeEngine().models[0], {})).test_client()
    assert client.get("/livez").status_code == 200
