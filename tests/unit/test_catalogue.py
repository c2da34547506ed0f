"""The pages that are made from the code are current, and nothing is missing from them."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from engine.catalogue import ENVELOPE, error_entries, main, pages
from engine.errors import CATALOGUE, from_code
from engine.exits import EXIT_CODES, MEANING, Exit, exit_code
from engine.lifecycle import COMMANDS, EVENTS, EXECUTORS, State
from engine.settings import Settings
from events.bodies import BODIES
from events.envelope import Event
from events.errors import FlightlogError

PAGES = pages()
DOCS = Path(__file__).parents[2] / "docs"
PACKAGES = ("events", "engine", "workers")


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def errors(root: type[FlightlogError] = FlightlogError) -> Iterator[type[FlightlogError]]:
    """Every error class of the three packages, once all of their modules are loaded."""
    if root is FlightlogError:
        for package in PACKAGES:
            for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
                if not module.name.endswith("__main__"):
                    import_module(module.name)
    for cls in root.__subclasses__():
        if cls.__module__.partition(".")[0] in PACKAGES:
            yield cls
            yield from errors(cls)


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_the_code_says_now(name: str) -> None:
    assert page(name) == PAGES[name], f"make docs writes {name} anew"


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_says_so_in_its_first_line(name: str) -> None:
    assert "python -P -m engine.catalogue" in page(name).splitlines()[0]


def test_check_is_content_with_pages_just_written(tmp_path: Path) -> None:
    assert main([str(tmp_path / "docs")]) == 0
    assert main(["--check", str(tmp_path / "docs")]) == 0


@pytest.mark.parametrize(
    "name", ["lifecycle.md", "events.md", "settings.md", "errors/README.md", "errors/JOB_LIVE.md"]
)
def test_check_names_a_page_that_differs_and_leaves_it_alone(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(tmp_path)])
    (tmp_path / name).write_text("edited by hand")
    assert main(["--check", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert [other for other in PAGES if str(tmp_path / other) in told] == [name]
    assert (tmp_path / name).read_text() == "edited by hand"


def test_check_names_a_page_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert all(name in told for name in PAGES)
    assert list(tmp_path.iterdir()) == []


def test_every_error_has_a_code_a_status_a_retry_an_exit_code_and_a_help_page() -> None:
    found = list(errors())
    assert len(found) > 30
    entries = error_entries()
    for cls in found:
        assert cls.code != FlightlogError.code, f"{cls.__name__} has no code of its own"
        assert cls.code.isupper()
        assert 400 <= cls.http <= 599
        assert cls.retry in ("no", "yes", "later", "see record")
        assert cls.code in EXIT_CODES, f"engine.exits does not know {cls.code}"
        assert f"\n# {cls.code}\n" in page(f"errors/{cls.code}.md"), f"{cls.code} has no page of its own"
        assert f"[{cls.code}]({cls.code}.md)" in page("errors/README.md")
        if "code" in vars(cls):
            entry = entries[cls.code]
            assert (entry.http, entry.retry) == (cls.http, cls.retry)


def test_every_errors_docstring_says_what_happened_and_then_what_to_do() -> None:
    for cls in errors():
        happened, _, then = (cls.__doc__ or "").partition("\n\n")
        assert happened.strip(), f"{cls.__name__} says nothing"
        assert then.strip(), f"{cls.__name__} does not say what to do"


def test_no_two_errors_share_a_code_unless_one_derives_from_the_other() -> None:
    owners = [cls.code for cls in errors() if "code" in vars(cls)]
    assert len(owners) == len(set(owners))


def test_the_pages_codes_are_exactly_those_of_the_code() -> None:
    assert set(error_entries()) == {cls.code for cls in errors()} == set(EXIT_CODES)
    assert set(CATALOGUE) <= set(EXIT_CODES)


def test_every_refusal_of_the_lifecycle_is_in_the_catalogue() -> None:
    codes = {answer[1:] for rows in COMMANDS.values() for _, answer in rows if answer.startswith("-")}
    assert codes <= set(CATALOGUE)


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("DEPLOY_FAILED", 1),
        ("ARGUMENT_INVALID", 2),
        ("CALL_TIMEOUT", 3),
        ("JOB_LIVE", 4),
        ("JOB_UNKNOWN", 5),
        ("LOG_UNAVAILABLE", 6),
        ("RECORD_DAMAGED", 7),
    ],
)
def test_an_errors_exit_code_goes_by_its_code(code: str, number: int) -> None:
    assert exit_code(from_code(code, "what")) == number


def test_no_error_is_0_and_a_strangers_is_1() -> None:
    assert exit_code(None) == 0
    assert exit_code(OSError("disk")) == 1
    assert exit_code(FlightlogError("no code of its own")) == 1


def test_every_exit_code_has_a_meaning() -> None:
    assert set(MEANING) == set(Exit)
    assert [int(code) for code in Exit] == list(range(9))


def test_every_event_type_is_documented_with_all_of_its_fields() -> None:
    sections = page("events.md").split("\n### ")[1:]
    by_name = {section.partition("\n")[0]: section for section in sections}
    assert set(by_name) == set(BODIES)
    for name, body in BODIES.items():
        assert (body.__doc__ or "").strip(), f"{name} has no docstring"
        for field in body.model_fields:
            assert field == "type" or f"| `{field}` |" in by_name[name], f"{name}.{field} is missing"
        assert ("*Lifecycle event" if body.lifecycle else "*Note") in by_name[name]


def test_a_field_that_names_a_person_is_marked_however_deep_the_mark_is() -> None:
    text = page("events.md")
    assert "| `app` | `str` |  |" in text
    assert "| `signers` | `list[str]` | yes |" in text
    assert "| `reason` | `str or null` | yes |" in text
    assert "| `sha256` | `str` |  |" in text


def test_the_envelope_is_documented_by_the_names_that_a_reader_gets() -> None:
    rest = dict.fromkeys(("epoch", "schema", "actor", "call", "step", "arguments", "cause"))
    raw = json.dumps({**rest, "correlation": None, "body": {}})
    assert list(Event("1-1", "PoolStarted", "site", 1, raw).as_dict()) == list(ENVELOPE)


def test_the_lifecycle_page_has_every_state_command_event_and_kind_of_work() -> None:
    text = page("lifecycle.md")
    assert "```mermaid" in text
    for name in (*State, *COMMANDS, *EVENTS, *EXECUTORS):
        assert f"`{name}`" in text, f"{name} is missing"


def test_every_setting_is_documented() -> None:
    text = page("settings.md")
    for name, info in Settings.model_fields.items():
        assert f"| `FLIGHTLOG_{name.upper()}` | `{name}` |" in text
        assert info.description, f"{name} has no description"
        assert info.description in text


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_every_test_that_a_page_names_is_there(path: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", path.read_text("utf-8")):
        source = DOCS.parent / file
        assert source.exists(), f"{path.name} names {file}"
        assert f"def {name}" in source.read_text("utf-8"), f"{path.name} names {file}::{name}"


def test_check_names_a_page_of_a_code_that_is_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path)])
    (tmp_path / "errors" / "GONE.md").write_text("once")
    assert main(["--check", str(tmp_path)]) == 1
    assert "GONE.md" in capsys.readouterr().err
