"""What ``adcascade bench rank`` found, case by case, and the targets. Asks nobody."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.speed.interleaved_timing import Turns
from benchmarks.speed.results import Entry, TargetResult
from ranking.spec import ExportParity

CROSS_ENCODER, INFINITY, EMPTY_CALL = "CrossEncoder.predict", "infinity-emb", "empty gRPC call"
# Each round brings another user; the second of these brings new ads as well, the last the same user once more.
WARM, COLD, AGAIN = "AdCascade", "AdCascade, new ads", "AdCascade, same user again"
_AUC_MARGIN = 0.002


@dataclass(frozen=True)
class RankCase:
    """One request: so many candidates, for a user of about so many tokens.

    Attributes:
        warm_target, cold_target: times faster than the cross-encoder that it should be; 0 for no target.
    """

    candidates: int
    user_tokens: int
    warm_target: float = 0.0
    cold_target: float = 0.0

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"{self.candidates:,} candidates, user of {self.user_tokens} tokens"


def entries(case: RankCase, turns: Turns, floors: Mapping[str, float]) -> list[Entry]:
    """What each contender took of a case, and how many times faster than the cross-encoder it was."""
    return [
        Entry(
            case=case.name,
            contender=name,
            milliseconds=turns.milliseconds(name),
            times_faster=None if name == CROSS_ENCODER else turns.times_faster(name, CROSS_ENCODER),
            floor=floors[name],
        )
        for name in (CROSS_ENCODER, INFINITY, WARM, COLD, AGAIN)
        if name in turns.seconds
    ]


def verdicts(cases: Sequence[RankCase], entries: Sequence[Entry]) -> list[TargetResult]:
    """Whether ours is as many times faster as it should be, and how its time grows with the candidates."""
    found = {(one.case, one.contender): one for one in entries}
    results = [
        _faster(found[case.name, contender], found[case.name, CROSS_ENCODER], target)
        for case in cases
        for contender, target in ((WARM, case.warm_target), (COLD, case.cold_target))
        if target
    ]
    by_count = {case.candidates: found[case.name, WARM].milliseconds.median for case in cases if case.user_tokens == 40}
    if {100, 1000} <= by_count.keys():
        times = by_count[1000] / by_count[100]
        what = "1,000 candidates against 100"
        results.append(
            TargetResult(what=what, target="under 8 times the time", reached=f"{times:.1f} times", met=times < 8)
        )
    return results


def of_quality(exports: Mapping[str, ExportParity]) -> list[TargetResult]:
    """What each way to run the text layers costs on the newest tenth of the log."""
    return [
        TargetResult(
            what=f"AUC of {name}",
            target=f"within {_AUC_MARGIN} of torch in float32",
            reached=f"{parity.auc:.4f} ({parity.auc_difference:+.4f}, {parity.pairs:,} pairs)",
            met=abs(parity.auc_difference) <= _AUC_MARGIN,
        )
        for name, parity in exports.items()
        if parity.auc is not None and parity.auc_difference is not None
    ]


def _faster(one: Entry, reference: Entry, target: float) -> TargetResult:
    times = one.times_faster
    assert times is not None
    assert one.floor is not None
    most = reference.milliseconds.median / one.floor
    return TargetResult(
        what=f"{one.case}: {one.contender} against {CROSS_ENCODER}",
        target=f"at least {target:g} times faster",
        reached=f"{times.median:.1f} times ({times.low:.1f} to {times.high:.1f})",
        met=times.median >= target,
        why=f"an empty call, and its matrix products alone at this machine's best rate, allow {most:.0f} times",
    )
