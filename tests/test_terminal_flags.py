"""Options that are nested in code are one list of flags on the command line."""

import doctest
from dataclasses import dataclass, field

import pytest
import typer
from typer.testing import CliRunner

import ranking.training.options
from adcascade.terminal.flags import FLAG, flat, with_flags_of, with_values
from ranking.training.options import TrainOptions


@dataclass(frozen=True)
class Inner:
    """A part."""

    steps: int = field(default=3, metadata={"help": "How many.", FLAG: "inner_steps", "min": 1})
    kind: str = field(default="a", metadata={"help": "Which."})


@dataclass(frozen=True)
class Outer:
    """The whole."""

    inner: Inner = field(default_factory=Inner)
    steps: int = field(default=5, metadata={"help": "How many in all."})


def run(*arguments):
    app, seen = typer.Typer(), []

    @app.command()
    @with_flags_of(Outer)
    def command(options: Outer, name: str = "n") -> None:
        seen.append((name, options))

    return CliRunner().invoke(app, list(arguments)), seen


def test_each_field_of_a_nested_value_has_a_flag_with_its_own_name_and_limits():
    result, seen = run("--inner-steps", "7", "--kind", "b", "--name", "m")
    assert result.exit_code == 0
    assert seen == [("m", Outer(Inner(7, "b"), 5))]
    assert run()[1] == [("n", Outer())]
    assert run("--inner-steps", "0")[0].exit_code == 2


def test_values_go_to_flags_and_back():
    options = with_values(Outer(), {"inner_steps": 1, "steps": 2})
    assert flat(options) == {"inner_steps": 1, "kind": "a", "steps": 2}
    assert with_values(Outer(), flat(options)) == options


def test_a_flag_that_does_not_exist_is_an_error():
    with pytest.raises(TypeError, match="TrainOptions has no epoch"):
        TrainOptions.of(epoch=1)


def test_the_example_of_the_training_options_is_true():
    assert doctest.testmod(ranking.training.options) == (0, 2)
