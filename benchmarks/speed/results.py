"""What a speed benchmark found: frozen values that go to JSON and come back. Knows no models."""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.speed.contest import Spread
from benchmarks.speed.machine import Machine
from records.errors import InputError


class Entry(BaseModel):
    """How long a contender took for one call of a case.

    Attributes:
        milliseconds: median, least and most of the rounds.
        times_faster: than the case's reference in the same rounds; None for the reference itself.
        note: what a reader must know beside the figure.
    """

    model_config = ConfigDict(frozen=True)

    case: str
    contender: str
    milliseconds: Spread
    times_faster: Spread | None = None
    note: str = ""


class Verdict(BaseModel):
    """A target beside what was reached; `why` says what stands in the way of one that was missed."""

    model_config = ConfigDict(frozen=True)

    what: str
    target: str
    reached: str
    met: bool
    why: str = ""


class BenchResult(BaseModel):
    """Everything that one run of a benchmark found.

    Attributes:
        bench: its name, such as "rank".
        floors: what a call cannot be faster than on this machine, milliseconds by what it is.
        missing: peers that could not be run, and why.
    """

    model_config = ConfigDict(frozen=True)

    bench: str
    machine: Machine
    settings: dict[str, str | int | float]
    entries: list[Entry]
    verdicts: list[Verdict] = []
    floors: dict[str, float] = {}
    missing: dict[str, str] = {}
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "BenchResult":
        """What `save` wrote. Raises InputError if the file is not there, or something else."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(f"{path} is no result of a benchmark: {error}") from error

    def entry(self, case: str, contender: str) -> Entry | None:
        """The entry of that name, if there is one."""
        return next((one for one in self.entries if (one.case, one.contender) == (case, contender)), None)
