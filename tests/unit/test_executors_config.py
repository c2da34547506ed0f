"""An app that names executors instead of a command: what its config may say, and what its process makes of it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.app_config import JOB_COMMAND, AppConfig, ComponentSpec, parse_config
from engine.archive import CONFIG
from engine.errors import BadConfig
from engine.job.config import load, make

TRAINER = {"tasks": ["train"], "executor": {"path": "trainer.Trainer"}}


def config(*executors: Any, **keys: Any) -> bytes:
    return json.dumps({"executors": list(executors), **keys}).encode()


def executor(**keys: Any) -> dict[str, Any]:
    return {**TRAINER, **keys}


def spec(**keys: Any) -> dict[str, Any]:
    """An executor whose spec has these keys."""
    return executor(executor={"path": "trainer.Trainer", **keys})


# -- what is read ------------------------------------------------------------------------------------


def test_executors_are_enough_and_their_app_says_itself_that_it_has_started() -> None:
    assert parse_config(config(TRAINER)) == AppConfig(
        command=JOB_COMMAND,
        started_by="notify",
        executors=(ComponentSpec(where="executors[0].executor", path="trainer.Trainer", tasks=("train",)),),
    )


def test_tasks_args_components_env_and_grace_are_read_as_they_are() -> None:
    parsed = parse_config(
        config(
            {"tasks": ["train", "validate"], "executor": {"path": "a.b.C", "args": {"lr": 0.1, "deep": {"x": [1]}}}},
            {"tasks": ["*"], "executor": {"path": "d.E"}},
            components=[{"id": "data", "path": "data.Rows", "args": {"n": 3}}, {"id": "x", "path": "data.Rows"}],
            env={"A": "1"},
            grace=0,
            task_result_filters=[],
        )
    )
    assert [(e.path, e.args, e.tasks) for e in parsed.executors] == [
        ("a.b.C", {"lr": 0.1, "deep": {"x": [1]}}, ("train", "validate")),
        ("d.E", {}, ("*",)),
    ]
    assert [(c.id, c.path, c.args) for c in parsed.components] == [
        ("data", "data.Rows", {"n": 3}),
        ("x", "data.Rows", {}),
    ]
    assert (parsed.env, parsed.grace) == ({"A": "1"}, 0.0)


@pytest.mark.parametrize("executors", [[TRAINER], [], None, "garbage", [{}]])
def test_a_command_wins_over_executors_whatever_these_are(executors: Any) -> None:
    raw = json.dumps({"command": ["train"], "executors": executors, "components": "garbage"}).encode()
    assert parse_config(raw) == AppConfig(command=("train",))


@pytest.mark.parametrize("command", [None, [], "train", [""]])
def test_a_command_that_cannot_be_run_is_not_passed_over_for_executors(command: Any) -> None:
    with pytest.raises(BadConfig, match=r"'command(\[0\])?' is"):
        parse_config(config(TRAINER, command=command))


def test_an_app_cannot_say_that_its_process_of_ours_has_started_by_being_launched() -> None:
    assert parse_config(config(TRAINER, started_by="launcher")).started_by == "notify"


# -- what is refused ---------------------------------------------------------------------------------

BAD = {
    "null": (json.dumps({"executors": None}).encode(), "executors", "is a null"),
    "an object": (json.dumps({"executors": {}}).encode(), "executors", "is a object"),
    "none": (config(), "executors", "is empty, so there is nothing to run"),
    "a string among them": (config("trainer.Trainer"), "executors[0]", "is a string"),
    "null among them": (config(TRAINER, None), "executors[1]", "is a null"),
    "no tasks": (config({"executor": TRAINER["executor"]}), "executors[0].tasks", "is None"),
    "tasks as a string": (config(executor(tasks="train")), "executors[0].tasks", "is 'train'"),
    "an empty list of tasks": (config(executor(tasks=[])), "executors[0].tasks", "is []"),
    "a number as a task": (config(executor(tasks=["train", 1])), "executors[0].tasks", "1"),
    "a list as a task": (config(executor(tasks=[["train"]])), "executors[0].tasks", "[['train']]"),
    "an empty task": (config(executor(tasks=["train", ""])), "executors[0].tasks", "''"),
    "a task that nobody can read": (config(executor(tasks=["x" * 201])), "executors[0].tasks", "xxx"),
    "a task that is half a character": (
        b'{"executors": [{"tasks": ["\\ud800"], "executor": {"path": "a.B"}}]}',
        "executors[0].tasks",
        "ud800",
    ),
    "a task for two": (
        config(TRAINER, executor(tasks=["validate", "train"])),
        "executors[1].tasks",
        "names 'train' a second time",
    ),
    "no executor": (config({"tasks": ["train"]}), "executors[0].executor", "is a null"),
    "an executor by its path alone": (
        config(TRAINER, executor(tasks=["t"], executor="trainer.Trainer")),
        "executors[1].executor",
        "is a string",
    ),
    "no path": (config(executor(executor={})), "executors[0].executor.path", "is None"),
    "a path without a module": (config(spec(path="Trainer")), "executors[0].executor.path", "is 'Trainer'"),
    "a path with nothing in it": (config(spec(path="")), "executors[0].executor.path", "is ''"),
    "a relative path": (config(spec(path=".trainer.Trainer")), "executors[0].executor.path", "is '.trainer"),
    "a path with a gap": (config(spec(path="trainer..Trainer")), "executors[0].executor.path", "is 'trainer.."),
    "a file as a path": (config(spec(path="custom/trainer.py")), "executors[0].executor.path", "is 'custom/"),
    "a call as a path": (config(spec(path="os.system('id')")), "executors[0].executor.path", "os.system("),
    "a path that is a list": (config(spec(path=["trainer", "T"])), "executors[0].executor.path", "is ['trainer'"),
    "args as a list": (config(spec(args=[1])), "executors[0].executor.args", "is a list"),
    "args that are null": (config(spec(args=None)), "executors[0].executor.args", "is a null"),
    "components as an object": (config(TRAINER, components={"data": {}}), "components", "is a object"),
    "components that are null": (config(TRAINER, components=None), "components", "is a null"),
    "a component that is a string": (config(TRAINER, components=["data"]), "components[0].id", "is None"),
    "a component without an id": (config(TRAINER, components=[{"path": "a.B"}]), "components[0].id", "is None"),
    "a component with an empty id": (
        config(TRAINER, components=[{"id": "", "path": "a.B"}]),
        "components[0].id",
        "is ''",
    ),
    "a component whose id is a list": (
        config(TRAINER, components=[{"id": ["x"], "path": "a.B"}]),
        "components[0].id",
        "is ['x']",
    ),
    "two components of one id": (
        config(TRAINER, components=[{"id": "a", "path": "a.B"}, {"id": "a", "path": "a.C"}]),
        "components[1].id",
        "is 'a' a second time",
    ),
    "a component without a path": (config(TRAINER, components=[{"id": "a"}]), "components[0].path", "is None"),
    "a component with args of its own kind": (
        config(TRAINER, components=[{"id": "a", "path": "a.B", "args": "n=1"}]),
        "components[0].args",
        "is a string",
    ),
    "a variable of the engine's own": (
        config(TRAINER, env={"FLIGHTLOG_RUN_DIR": "/tmp"}),
        "env.FLIGHTLOG_RUN_DIR",
        "is a name of the engine's own",
    ),
    "a grace below zero": (config(TRAINER, grace=-1), "grace", "is -1"),
}


@pytest.mark.parametrize("name", BAD)
def test_L9_a_bad_shape_is_refused_with_its_key_and_what_to_make_of_it(name: str) -> None:
    raw, key, text = BAD[name]
    with pytest.raises(BadConfig) as caught:
        parse_config(raw)
    assert caught.value.context["key"] == key
    assert f"'{key}'" in caught.value.what
    assert text in caught.value.what
    assert caught.value.fix.startswith("make it ")


# -- what the job's process makes of it ----------------------------------------------------------------

MODULES = {
    "fed_good": """
class Rows:
    def __init__(self, n=1):
        self.n = n
class Runs:
    def __init__(self, **args):
        self.args = args
    def execute(self, *_):
        pass
""",
    "fed_broken": "import no_such_module_anywhere\n",
    "fed_typo": "def f(:\n",
    "fed_leaves": "import sys\nsys.exit(0)\n",
}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An app whose modules can be imported, and are forgotten afterwards."""
    custom = tmp_path / "custom"
    custom.mkdir()
    for name, text in MODULES.items():
        (custom / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(custom))
    importlib.invalidate_caches()
    (tmp_path / "config").mkdir()
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


def write(app: Path, raw: bytes) -> Path:
    (app / CONFIG).write_bytes(raw)
    return app


def test_an_executor_is_made_once_for_all_its_tasks_and_components_are_found_by_id(app: Path) -> None:
    raw = config(
        {"tasks": ["a", "b"], "executor": {"path": "fed_good.Runs", "args": {"lr": 1}}},
        {"tasks": ["c"], "executor": {"path": "fed_good.Runs"}},
        components=[{"id": "rows", "path": "fed_good.Rows", "args": {"n": 7}}],
    )
    executors, components = load(write(app, raw))
    assert set(executors) == {"a", "b", "c"}
    assert executors["a"] is executors["b"]
    assert executors["a"] is not executors["c"]
    assert executors["a"].args == {"lr": 1}  # type: ignore[attr-defined]
    assert components["rows"].n == 7


@pytest.mark.parametrize(
    ("path", "args", "text"),
    [
        ("fed_nowhere.Runs", {}, "which does not import: ModuleNotFoundError"),
        ("fed_good.Nobody", {}, "which does not import: AttributeError"),
        ("fed_broken.Runs", {}, "no_such_module_anywhere"),
        ("fed_typo.Runs", {}, "which does not import: SyntaxError"),
        ("fed_leaves.Runs", {}, "which does not import: SystemExit"),
        ("fed_good.Rows", {}, "which has no execute()"),
        ("fed_good.Rows", {"m": 1}, "cannot be made with its args: TypeError"),
        ("fed_good.__name__", {}, "cannot be made with its args: TypeError"),
        ("sys.exit", {}, "cannot be made with its args"),
    ],
)
def test_L9_what_cannot_be_imported_or_made_is_named_with_its_key(
    app: Path, path: str, args: dict[str, Any], text: str
) -> None:
    raw = config(executor(executor={"path": path, "args": args}))
    with pytest.raises(BadConfig) as caught:
        load(write(app, raw))
    assert "executors[0].executor" in caught.value.what
    assert path in caught.value.what
    assert text in caught.value.what
    assert caught.value.fix


def test_L9_a_component_that_cannot_be_made_is_named_by_its_own_key(app: Path) -> None:
    raw = config(
        executor(executor={"path": "fed_good.Runs"}),
        components=[{"id": "a", "path": "fed_good.Rows"}, {"id": "b", "path": "fed_good.Rows", "args": {"no": 1}}],
    )
    with pytest.raises(BadConfig, match=r"components\[1\]"):
        load(write(app, raw))


def test_an_object_is_made_with_its_args_and_nothing_else(app: Path) -> None:
    made = make(ComponentSpec(where="x", path="fed_good.Runs", args={"a": [1], "b": None}))
    assert made.args == {"a": [1], "b": None}
