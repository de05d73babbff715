"""What a speed benchmark found: frozen values that go to JSON and come back. Knows no models."""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adcascade.records.errors import InputError
from benchmarks.speed.interleaved_timing import Spread
from benchmarks.speed.machine import Machine


class Entry(BaseModel):
    """How long a contender took for one call of a case.

    Attributes:
        milliseconds: median, least and most of the rounds.
        times_faster: than the case's reference in the same rounds; None for the reference itself.
        figures: what else was measured of it, such as recall or MiB, by name.
        floor: milliseconds below which it cannot be on this machine; None where nobody has reckoned it.
        note: what a reader must know beside the figure.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    case: str
    contender: str
    milliseconds: Spread
    times_faster: Spread | None = None
    figures: dict[str, float] = {}
    floor: float | None = None
    note: str = ""

    @property
    def share_of_floor(self) -> float | None:
        """Part of the median, 0 to 1, that even the best program would take."""
        return None if self.floor is None else self.floor / self.milliseconds.median


class TargetResult(BaseModel):
    """A target beside what was reached; `why` says what stands in the way of one that was missed."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    what: str
    target: str
    reached: str
    met: bool
    why: str = ""


class Line(BaseModel):
    """A line of a plot: what `y` was at each `x`."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    x: list[float]
    y: list[float]


class Plot(BaseModel):
    """Lines that a reader would rather see than read."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    x_label: str
    y_label: str
    lines: list[Line]
    logarithmic: bool = False


class BenchResult(BaseModel):
    """Everything that one run of a benchmark found.

    Attributes:
        bench: its name, such as "rank".
        floors: what a call cannot be faster than on this machine, milliseconds by what it is.
        peers: programs of others that were run, with their versions.
        missing: those that could not be run, and why.
        remarks: where the time goes, in words.
        plots: beside the bars of the entries.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    bench: str
    machine: Machine
    settings: dict[str, str | int | float]
    entries: list[Entry]
    verdicts: list[TargetResult] = []
    floors: dict[str, float] = {}
    peers: dict[str, str] = {}
    missing: dict[str, str] = {}
    remarks: list[str] = []
    plots: list[Plot] = []
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
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except ValidationError as error:
            raise InputError(f"{path} is no result of a benchmark") from error

    def entry(self, case: str, contender: str) -> Entry | None:
        """The entry of that name, if there is one."""
        return next((one for one in self.entries if (one.case, one.contender) == (case, contender)), None)
