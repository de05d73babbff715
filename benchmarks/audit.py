"""``make audit``: what AdCascade is made of, whether it is what it should be, and whether anything in it is known bad.

Three parts: the weights of the embedded encoder against committed hashes, a bill of materials (CycloneDX), and known
vulnerabilities (pip-audit). The last asks a service on the network. Packages that it could not look up are named, and
the audit is then unfinished: neither passed nor failed.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated, Any

import typer

from adcascade.records.errors import InputError
from adcascade.terminal.exits import clean_exit
from adcascade.vectors.encoder import embedded_model_path

_ROOT = Path(__file__).parent.parent
HASHES = _ROOT / "adcascade" / "vectors" / "embedded_encoder.sha256"
PASSED, FAILED, UNFINISHED = 0, 1, 3
_OURS = "adcascade"
_SHOWN = 5


@dataclass
class Part:
    """One part of the audit: what was found bad, what could not be looked at, and a line on the rest."""

    name: str
    said: str
    bad: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> int:
        """`PASSED`, `FAILED` or `UNFINISHED`."""
        return FAILED if self.bad else UNFINISHED if self.unseen else PASSED


def check_encoder(folder: Path, hashes: Path = HASHES) -> Part:
    """The encoder's files against the committed SHA-256 of each, as `sha256sum` writes them."""
    wanted = {
        name.strip(): digest for digest, _, name in (line.partition(" ") for line in hashes.read_text().splitlines())
    }
    bad = []
    for name, digest in wanted.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            bad.append(f"{name}: {error.strerror}")
            continue
        if found != digest:
            bad.append(f"{name} has SHA-256 {found}, not {digest}")
    return Part("embedded encoder", f"{len(wanted) - len(bad)} of {len(wanted)} files are as committed", bad)


def read_vulnerabilities(document: Mapping[str, Any]) -> Part:
    """What pip-audit wrote as JSON. Its exit code says nothing of what it skipped, so that is counted here."""
    packages = document["dependencies"]
    unseen = [one["name"] for one in packages if "skip_reason" in one]
    bad = [
        f"{one['name']} {one['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version'}"
        for one in packages
        for found in one.get("vulns", ())
    ]
    return Part("vulnerabilities", f"{len(packages) - len(unseen)} of {len(packages)} packages looked up", bad, unseen)


def installed_packages() -> list[str]:
    """All packages of this environment but AdCascade itself, as ``name==version``.

    Without the local part of a version (torch's "+cpu"), which no service knows.
    """
    found = {one.name.lower(): one.version.partition("+")[0] for one in distributions()}
    return [f"{name}=={version}" for name, version in sorted(found.items()) if name != _OURS]


def find_vulnerabilities(tools: Path, packages: Sequence[str]) -> Part:
    """Asks pip-audit of packages, given as ``name==version``."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, out = Path(folder) / "packages.txt", Path(folder) / "found.json"
        wanted.write_text("\n".join(packages) + "\n")
        options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
        done = subprocess.run(
            [tools / "pip-audit", "-r", wanted, *options, "--output", out], capture_output=True, text=True
        )
        if not out.is_file():
            last = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
            return Part("vulnerabilities", f"the service could not be asked: {last[:200]}", unseen=["all packages"])
        return read_vulnerabilities(json.loads(out.read_bytes()))


def write_bill_of_materials(tools: Path, python: Path, out: Path) -> Part:
    """Writes all packages that `python` has into `out`, as CycloneDX JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = [
        tools / "cyclonedx-py",
        "environment",
        python,
        "--of",
        "JSON",
        "--output-reproducible",
        "-o",
        out,
    ]
    done = subprocess.run([*command, "--pyproject", _ROOT / "pyproject.toml"], capture_output=True, text=True)
    if done.returncode:
        return Part("bill of materials", "not written", [done.stderr.strip()[-500:] or "cyclonedx-py failed"])
    count = len(json.loads(out.read_bytes()).get("components", ()))
    return Part("bill of materials", f"{count} components in {out}")


def main(
    tools: Annotated[Path, typer.Option(help="Folder with pip-audit and cyclonedx-py.")],
    out: Annotated[Path, typer.Option(help="Where the bill of materials goes.")] = Path("dist/sbom.cdx.json"),
) -> None:
    """Audit this environment. Exit code 0: nothing bad was found; 1: something was; 3: not all could be looked at."""
    python = Path(sys.executable)
    if not (tools / "pip-audit").is_file():
        raise InputError(f"there is no pip-audit in {tools}; run make audit, which installs it there")
    parts = [
        check_encoder(embedded_model_path()),
        write_bill_of_materials(tools, python, out),
        find_vulnerabilities(tools, installed_packages()),
    ]
    for part in parts:
        word = {PASSED: "ok", FAILED: "BAD", UNFINISHED: "NOT ALL LOOKED AT"}[part.verdict]
        print(f"{part.name}: {word}: {part.said}")  # noqa: T201
        for line in part.bad:
            print(f"  {line}")  # noqa: T201
        if part.unseen:
            more = f" and {len(part.unseen) - _SHOWN} more" if len(part.unseen) > _SHOWN else ""
            print(f"  not looked up, so nothing is known of them: {', '.join(part.unseen[:_SHOWN])}{more}")  # noqa: T201
    verdicts = {part.verdict for part in parts}
    sys.exit(FAILED if FAILED in verdicts else UNFINISHED if UNFINISHED in verdicts else PASSED)


if __name__ == "__main__":
    with clean_exit(InputError):
        typer.run(main)
