"""The guard of a gRPC port and of a metrics page: what came with a call, put before `AccessControl`."""

import logging
from collections.abc import Mapping
from http import HTTPStatus

from adcascade.serving.auth.access import AccessControl, Admission
from adcascade.serving.auth.authenticator import NotProven, Proofs
from adcascade.serving.auth.scopes import METRICS_READ
from adcascade.serving.context import IncomingCall
from adcascade.serving.errors import PermissionDenied

log = logging.getLogger(__name__)

_AUTHORIZATION = "authorization"
_CERTIFICATE = "x509_pem_cert"


class CallGuard:
    """Admits gRPC calls."""

    def __init__(self, access: AccessControl) -> None:
        self._access = access

    def __call__(self, call: IncomingCall, *, exists: bool) -> Admission:
        """See `adcascade.serving.interceptors.Guard`."""
        proofs = Proofs(
            [value for key, value in call.metadata if key == _AUTHORIZATION],
            lambda: next(iter(call.auth_context.get(_CERTIFICATE, ())), None),
        )
        # A stranger does not learn which methods there are; a caller with a name learns that there is none.
        return self._access.admit(call.method, proofs) if exists else Admission(self._access.identify(proofs))


class PageGuard:
    """Says who may see the metrics page."""

    def __init__(self, access: AccessControl) -> None:
        self._access = access

    def __call__(self, headers: Mapping[str, str], certificate: bytes | None, peer: str) -> HTTPStatus:
        """The status to answer with; see `adcascade.serving.metrics_page.MetricsPage`."""
        proofs = Proofs([headers[_AUTHORIZATION]] if _AUTHORIZATION in headers else [], lambda: certificate)
        try:
            self._access.check(METRICS_READ, proofs)
        except NotProven as error:
            log.info("metrics UNAUTHENTICATED from %s: %s", peer, error.reason)
            return HTTPStatus.UNAUTHORIZED
        except PermissionDenied as error:
            log.info("metrics PERMISSION_DENIED from %s: %s", peer, error)
            return HTTPStatus.FORBIDDEN
        return HTTPStatus.OK
