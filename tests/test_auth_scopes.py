"""Each method of the wire contract has a scope: one that is added without is a failure here, and closed in a server."""

import importlib
from pathlib import Path

import adcascade.events.service
import pipeline.service
import ranking.service
import retrieval.service
from adcascade.serving.auth.scopes import SCOPES

PROTOS = Path(__file__).parent.parent / "protos"
SERVICES = (retrieval.service, ranking.service, pipeline.service, adcascade.events.service)


def test_every_method_of_every_service_needs_a_scope_that_exists():
    said = {one.SERVICE_NAME: set(one.SCOPES) for one in SERVICES}
    contract = {}
    for proto in PROTOS.glob("adcascade/v1/*.proto"):
        descriptor = importlib.import_module(f"adcascade.v1.{proto.stem}_pb2").DESCRIPTOR
        for service in descriptor.services_by_name.values():
            contract[service.full_name] = {method.name for method in service.methods}
    assert said == contract
    needed = {scope for one in SERVICES for scope in one.SCOPES.values()}
    assert needed <= SCOPES.keys()
