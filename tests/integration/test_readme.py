"""What the README says can be typed, typed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import kill, processes_with

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder with what a checkout has, and nothing running in it."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    yield tmp_path
    for _ in range(50):
        left = [pid for pid in processes_with(str(tmp_path)) if pid != os.getpid()]
        if not left:
            break
        for pid in left:
            kill(pid)


def environment() -> dict[str, str]:
    return {
        **{n: value for n, value in os.environ.items() if n not in ("FLIGHTLOG_WORKSPACE", "FLIGHTLOG_API")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "BREAST_CANCER_PAUSE": "0",
    }


def block(language: str, holding: str) -> str:
    """The README's one block of a language that has a text in it."""
    found = [b for b in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if holding in b]
    assert len(found) == 1, f"{len(found)} blocks of {language} with {holding!r}"
    return str(found[0])


@pytest.mark.timeout(120)
def test_the_shell_session_of_the_readme_runs_as_it_stands(place: Path) -> None:
    lines = [
        line[2:].partition("  #")[0].rstrip()
        for line in block("console", "flightlog up").splitlines()
        if line.startswith("$ ")
    ]
    assert len(lines) >= 8
    # JOB stands for the id that `list` shows; its abort comes after its end, and is refused with code 4.
    script = ["set -e", *lines]
    script.insert(script.index(next(x for x in script if x.startswith("flightlog why"))), FIND_JOB)
    script = [line.replace(" JOB", ' "$JOB"') for line in script]
    script = [f"{line} || [ $? = 4 ]" if line.startswith("flightlog abort") else line for line in script]
    script = [f"{line} || true" if line.startswith("flightlog doctor") else line for line in script]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "final held-out accuracy" in done.stdout
    assert '"type": "AppFinished"' in done.stdout
    assert "is down" in done.stdout


FIND_JOB = "JOB=$(flightlog list --json | python -c 'import json, sys; print(json.load(sys.stdin)[0][\"job_id\"])')"


@pytest.mark.timeout(120)
def test_the_python_of_the_readme_runs_as_it_stands(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", block("python", "ClientEngine.open")],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "'job_id': 'job-1'" in done.stdout


@pytest.mark.timeout(120)
def test_the_demo_trains_a_federation_shows_what_left_each_site_and_names_what_to_try(place: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("flightlog"), "demo"],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = re.findall(r"^(\d+)/10 +3 of 3 ", done.stdout, re.MULTILINE)
    assert rounds == [str(number + 1) for number in range(10)]
    accuracy = {
        name.strip(): float(percent)
        for name, percent in re.findall(
            r"^(site-\d alone|federated|all in one place) .* ([\d.]+)%$", done.stdout, re.M
        )
    }
    assert accuracy["federated"] > accuracy["site-3 alone"] + 5
    assert abs(accuracy["federated"] - accuracy["all in one place"]) < 2
    for site in ("site-1", "site-2", "site-3"):
        assert re.search(rf"^{site} +server +task_result +breast-cancer +11 ", done.stdout, re.MULTILINE)
        assert (place / "flightlog-demo" / site / "breast-cancer" / "metrics.jsonl").exists()
    assert re.findall(
        r"^Watch (site-\d): http://127\.0\.0\.1:\d+/jobs/breast-cancer$", done.stdout, re.MULTILINE
    ) == [
        "site-1",
        "site-2",
        "site-3",
    ]
    commands, look_back = done.stdout.split("Try next:")[1].strip().split("Look back on it in a browser: ")
    assert look_back.strip().endswith("api -w flightlog-demo/site-1")
    commands = commands.strip().splitlines()
    assert len(commands) == 5
    for command in commands:
        again = subprocess.run(
            ["bash", "-c", command.strip()], cwd=place, env=environment(), capture_output=True, text=True, check=False
        )
        assert again.returncode == 0, command + again.stderr


def test_the_readme_names_only_targets_that_the_makefile_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets


def test_the_readme_leads_only_to_pages_that_are_there() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / link).exists(), link
    assert README.count("\n") <= 150
