"""``python -m stand_ins.ranking``, or in the process of a test."""

from functools import partial

from adcascade.serving.server import Server
from adcascade.v1 import ranking_pb2 as pb
from adcascade.v1.ranking_pb2_grpc import RankingServiceServicer, add_RankingServiceServicer_to_server
from stand_ins.settings import settings_of_command

NAME = "adcascade.v1.RankingService"


def ids_of(request):
    return [one.ad.ad_id if one.HasField("ad") else one.ad_id for one in request.candidates]


def last_is_best(request):
    """Probabilities that turn the order round."""
    ads = [pb.RankedAd(ad_id=ad_id, p_click=(n + 1) / 2000, candidate=n) for n, ad_id in enumerate(ids_of(request))]
    return pb.RankResponse(ads=ads[::-1], model_version="made-up", index_version="made-up")


class StandInRanking(RankingServiceServicer):
    """Answers what `answer` makes of a request and its context."""

    def __init__(self, answer=lambda request, context: last_is_best(request)):
        self.answer, self.requests = answer, []

    def Rank(self, request, context):  # noqa: N802
        self.requests.append(request)
        return self.answer(request, context)


def register(servicer):
    return partial(add_RankingServiceServicer_to_server, servicer)


if __name__ == "__main__":
    server = Server(settings_of_command())
    server.add(NAME, register(StandInRanking()))
    server.run(lambda: None, lambda: None)
