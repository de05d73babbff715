"""The audit says what is bad, and never that all is well when it could not look."""

import hashlib

from adcascade.vectors.encoder import embedded_model_path
from benchmarks.audit import (
    FAILED,
    PASSED,
    UNFINISHED,
    check_encoder,
    find_vulnerabilities,
    installed_packages,
    read_vulnerabilities,
)


def test_the_embedded_encoder_is_the_one_whose_hashes_are_committed():
    part = check_encoder(embedded_model_path())
    assert part.verdict == PASSED, part.bad
    assert part.said == "10 of 10 files are as committed"


def test_a_changed_and_a_missing_file_of_an_encoder_are_named(tmp_path):
    digest = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "list").write_text(f"{digest}  model.safetensors\n{digest}  vocab.txt\n{digest}  config.json\n")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "vocab.txt").write_bytes(b"weightz")
    part = check_encoder(tmp_path, tmp_path / "list")
    assert part.verdict == FAILED
    assert [line.split()[0].strip(":") for line in part.bad] == ["vocab.txt", "config.json"]


CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found"}
BAD = {"name": "jinja2", "version": "2.11.2", "vulns": [{"id": "CVE-1", "fix_versions": ["2.11.3"], "aliases": []}]}


def test_packages_that_were_not_looked_up_are_no_success_and_a_finding_is_a_failure():
    assert read_vulnerabilities({"dependencies": [CLEAN]}).verdict == PASSED
    unfinished = read_vulnerabilities({"dependencies": [CLEAN, SKIPPED]})
    assert (unfinished.verdict, unfinished.unseen) == (UNFINISHED, ["torch"])
    assert unfinished.said == "1 of 2 packages looked up"
    failed = read_vulnerabilities({"dependencies": [BAD, SKIPPED]})
    assert (failed.verdict, failed.bad) == (FAILED, ["jinja2 2.11.2: CVE-1, mended in 2.11.3"])


def test_a_service_that_cannot_be_asked_is_said(tmp_path):
    tool = tmp_path / "pip-audit"
    tool.write_text("#!/bin/sh\necho 'could not resolve the service' >&2\nexit 1\n")
    tool.chmod(0o755)
    part = find_vulnerabilities(tmp_path, ["numpy==2.0"])
    assert part.verdict == UNFINISHED
    assert "could not resolve the service" in part.said


def test_packages_are_asked_for_as_a_service_knows_them():
    packages = dict(one.split("==") for one in installed_packages())
    assert "adcascade" not in packages
    assert packages["torch"]
    assert not any("+" in version for version in packages.values())
