"""``python -m stand_ins.retrieval``, or in the process of a test."""

from functools import partial

from adcascade.serving.server import Server
from adcascade.v1 import retrieval_pb2 as pb
from adcascade.v1 import types_pb2
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceServicer, add_RetrievalServiceServicer_to_server
from stand_ins.settings import settings_of_command

NAME = "adcascade.v1.RetrievalService"


class StandInRetrieval(RetrievalServiceServicer):
    """Finds the ads ad-0, ad-1, ...; those of `gone` it has forgotten when it is asked for their texts."""

    def __init__(self, gone=(), answer=None):
        self.gone, self.answer, self.requests = set(gone), answer, []

    def Retrieve(self, request, context):  # noqa: N802
        self.requests.append(request)
        if self.answer is not None:
            return self.answer(request)
        candidates = [pb.Candidate(ad_id=f"ad-{n}", score=-n / 1e6, source="interests") for n in range(request.k)]
        return pb.RetrieveResponse(candidates=candidates, index_version="made-up")

    def GetAds(self, request, context):  # noqa: N802
        self.requests.append(request)
        known = [ad_id for ad_id in request.ad_ids if ad_id not in self.gone]
        return pb.GetAdsResponse(
            ads=[types_pb2.Ad(ad_id=ad_id, title=f"title of {ad_id}") for ad_id in known],
            unknown_ad_ids=[ad_id for ad_id in request.ad_ids if ad_id in self.gone],
        )


def register(servicer):
    return partial(add_RetrievalServiceServicer_to_server, servicer)


if __name__ == "__main__":
    server = Server(settings_of_command())
    server.add(NAME, register(StandInRetrieval()))
    server.run(lambda: None, lambda: None)
