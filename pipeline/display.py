"""Recommendations as text for people and as JSON for programs."""

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from adcascade.records.printable import printable
from adcascade.records.users import Event, UserProfile
from adcascade.v1 import types_pb2
from pipeline.answers import Recommendations
from pipeline.results import RETRIEVAL_SCORE, PipelineEvaluation, ShownEvaluation
from retrieval.evaluation.report import COLUMNS, methods_table, summary
from retrieval.evaluation.results import RETRIEVAL, Comparison

if TYPE_CHECKING:
    from ranking.spec import OrderBlend

_SHOWN_EVENTS = 5
# Columns of the terminal that the numbers beside a title take.
_NUMBERS_WIDTH = 54


def user_panel(user: UserProfile, titles: dict[str, str]) -> Text:
    """Who the user is and the newest things they did."""
    attributes = ", ".join(f"{name} {value}" for name, value in user.attributes.items())
    lines = [f"User {user.user_id or '(no id)'}{f' ({attributes})' if attributes else ''}"]
    if user.interests:
        lines.append(f"  interests: {user.interests}")
    for event in user.history[: -_SHOWN_EVENTS - 1 : -1]:
        lines.append(f"  {_event_line(event, titles)}")
    if len(user.history) > _SHOWN_EVENTS:
        lines.append(f"  ... and {len(user.history) - _SHOWN_EVENTS} earlier events")
    return Text("\n".join(map(printable, lines)))


def _event_line(event: Event, titles: dict[str, str]) -> str:
    day = f"{event.timestamp:%Y-%m-%d}  " if event.timestamp else ""
    word = "shown, no click" if event.type.value == "impression" else event.type.value
    return f"{day}{word:<15} {event.text or titles.get(event.ad_id, event.ad_id)}"


def recommendations_table(answer: Recommendations, width: int) -> Group:
    """The recommended ads, how ranking moved them, and where the time went, for a terminal of `width` columns."""
    table = Table(show_edge=False)
    table.add_column("#", justify="right")
    table.add_column("ad", overflow="ellipsis", no_wrap=True, max_width=max(16, width - _NUMBERS_WIDTH))
    for column in ("score", "retrieved", "p_click", "moved"):
        table.add_column(column, justify="right", min_width=len(column))
    for place, item in enumerate(answer.items):
        moved = item.retrieval_position - place
        table.add_row(
            str(place + 1),
            printable(item.ad.title or item.ad.body),
            f"{item.retrieval_score or item.similarity:.3f}",
            f"#{item.retrieval_position + 1}",
            f"{item.p_click:.3f}" if item.p_click is not None else "-",
            f"up {moved}" if moved > 0 else f"down {-moved}" if moved else "=",
        )
    return Group(table, Text(_summary(answer), style="dim"))


def _summary(answer: Recommendations) -> str:
    if not answer.items:
        return f"No ad is left for this user; --include-history counts those that they met, too. {_times(answer)}"
    if answer.degraded_reason:
        return f"Ranking did not answer ({answer.degraded_reason}): this is the retrieval order. {_times(answer)}"
    top = len(answer.items)
    new = sum(item.retrieval_position >= top for item in answer.items)
    both = answer.retrieval_weight and any(item.retrieval_score for item in answer.items)
    order = "p_click and retrieval's score make the order. " if both else ""
    return f"{order}Ranking brought up {new} of {top} from below retrieval's top {top}. {_times(answer)}"


def _times(answer: Recommendations) -> str:
    def inside(timing: types_pb2.Timing) -> str:
        return f"queue {timing.queue_ms:.1f}, text {timing.tokenize_ms:.1f}, compute {timing.compute_ms:.1f}"

    return (
        f"{answer.total_ms:.0f} ms: retrieval {answer.retrieval_ms:.0f} ({inside(answer.retrieval)}), "
        f"ranking {answer.ranking_ms:.0f} ({inside(answer.ranking)})"
    )


def pipeline_table(found: PipelineEvaluation) -> Group:
    """What each order of ads would have put on top, for people."""
    return Group(methods_table(found.comparison), Text("\n".join(pipeline_notes(found))))


def pipeline_notes(found: PipelineEvaluation) -> list[str]:
    """The same in sentences."""
    lines = [*summary(found.comparison, "recall@10"), *_gains(found.comparison), COLUMNS]
    if found.without_candidates:
        lines.append(f"For {found.without_candidates} users nothing is known that retrieval could search by.")
    return lines if found.shown is None else [*lines, *shown_notes(found.shown)]


def shown_notes(found: ShownEvaluation) -> list[str]:
    """In which order stands what was shown together, in sentences."""
    order = ", ".join(f"{value.value:.3f} by {name}" for name, value in found.ndcg.items())
    gains = ", ".join(
        f"{name} {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" for name, gain in found.gain.items()
    )
    where = "on one day" if found.together == "day" else "in one request"
    return [
        f"Of ads that a user had before them {where} ({found.lists:,} with and without clicks, of {found.ads:.0f} ads "
        f"in the mean), the clicked ones on top: nDCG@10 {order}.",
        f"Minus that by {RETRIEVAL_SCORE}: {gains}. As served: log-odds of the click + {found.retrieval_weight:g} x "
        "it.",
    ]


def _gains(found: Comparison) -> list[str]:
    gains = {name: leads[RETRIEVAL]["ndcg@10"] for name, leads in found.lead.items() if name != RETRIEVAL}
    return [
        f"nDCG@10 of {name} minus retrieval's: {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]."
        for name, gain in gains.items()
    ]


def order_line(order: "OrderBlend") -> str:
    """What retrieval's score counts, and what it brings, in a sentence."""
    what = "Log-likelihood a request" if order.fitted_on == "requests" else "nDCG@10"
    line = (
        f"Order: log-odds of the click + {order.retrieval_weight:g} x retrieval's score, fitted on {order.units:,} "
        f"{order.fitted_on} of the validation part. {what} over p_click alone: {order.gain.value:+.4f} "
        f"[{order.gain.low:+.4f}, {order.gain.high:+.4f}]"
    )
    if order.fitted_on == "users":
        return f"{line}, on the users that it was chosen by."
    if not order.retrieval_weight:
        return f"{line}, which is not certain: p_click alone makes the order."
    return f"{line}."


def as_dict(answer: Recommendations) -> dict[str, Any]:
    """The answer as plain JSON values."""
    return {
        "request_id": answer.request_id,
        "index_version": answer.index_version,
        "model_version": answer.model_version,
        "degraded": bool(answer.degraded_reason),
        "degraded_reason": answer.degraded_reason,
        "milliseconds": {
            "retrieval": round(answer.retrieval_ms, 2),
            "ranking": round(answer.ranking_ms, 2),
            "total": round(answer.total_ms, 2),
        },
        "recommendations": [
            {
                "ad_id": item.ad.ad_id,
                "title": item.ad.title,
                "similarity": round(item.similarity, 4),
                "retrieval_score": round(item.retrieval_score, 4),
                "retrieval_position": item.retrieval_position,
                "p_click": None if item.p_click is None else round(item.p_click, 6),
                "p_conversion": None if item.p_conversion is None else round(item.p_conversion, 6),
                "source": item.source,
            }
            for item in answer.items
        ],
    }
