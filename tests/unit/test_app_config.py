import json

import pytest

from engine.app_config import AppConfig, find_command, parse_config
from engine.errors import BadConfig, CommandNotFound


def config(**keys):
    return json.dumps({"command": ["python", "train.py"], **keys}).encode()


def test_a_command_is_enough():
    assert parse_config(config()) == AppConfig(
        command=("python", "train.py"), started_by="launcher", env={}, grace=None
    )


def test_all_keys_are_read_and_the_references_own_are_left_alone():
    parsed = parse_config(
        config(started_by="notify", env={"A": "1"}, grace=2, format_version=2, executors=[{}], components=[])
    )
    assert parsed == AppConfig(command=("python", "train.py"), started_by="notify", env={"A": "1"}, grace=2.0)


BAD = {
    "is missing": (None, "is missing from the app", None),
    "is not UTF-8": (b'{"command": "\xff"}', "is not UTF-8 (byte 13)", None),
    "is not JSON": (b'{\n  "command": oops}', "line 2, column 14", None),
    "is empty": (b"", "is not JSON", None),
    "is nested too deeply": (b"[" * 200_000, "is not JSON that can be read", None),
    "has a number nobody can read": (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON that can be read", None),
    "is a list": (b"[]", "holds a list", None),
    "has no command": (b'{"components": []}', "'command' is missing, so there is nothing to run", "command"),
    "has a null command": (config(command=None), "'command' is a null", "command"),
    "has a command line": (config(command="python train.py"), "'command' is a string", "command"),
    "has an empty command": (config(command=[]), "'command' is empty", "command"),
    "has an empty word": (config(command=["python", ""]), "'command[1]' is ''", "command[1]"),
    "has a word that is a number": (config(command=["sleep", 5]), "'command[1]' is 5", "command[1]"),
    "has a word with NUL": (config(command=["a\0b"]), "'command[0]'", "command[0]"),
    "has a word that is half a character": (b'{"command": ["\\ud800"]}', "'command[0]'", "command[0]"),
    "has another starter": (config(started_by="me"), "'started_by' is 'me'", "started_by"),
    "has a starter of the wrong type": (
        config(started_by=["notify"]),
        "'started_by' is ['notify']",
        "started_by",
    ),
    "has env as a list": (config(env=["A=1"]), "'env' is a list", "env"),
    "has env with a number": (config(env={"A": 1}), "'env.A' is 1", "env.A"),
    "has env with = in a name": (config(env={"A=B": "1"}), "'env' has the name 'A=B'", "env"),
    "has env of the engine's own": (
        config(env={"FLIGHTLOG_ATTEMPT": "1"}),
        "'env.FLIGHTLOG_ATTEMPT' is a name of the engine's own",
        "env.FLIGHTLOG_ATTEMPT",
    ),
    "has grace below zero": (config(grace=-1), "'grace' is -1", "grace"),
    "has grace that is not a number": (config(grace=float("nan")), "'grace' is nan", "grace"),
    "has grace that is true": (config(grace=True), "'grace' is True", "grace"),
}


@pytest.mark.parametrize(("raw", "what", "key"), BAD.values(), ids=BAD)
def test_a_config_is_refused_with_the_key_and_what_is_expected_if_it(raw, what, key):
    with pytest.raises(BadConfig) as caught:
        parse_config(raw)
    assert what in caught.value.what
    assert "config_fed_client.json" in caught.value.what
    assert caught.value.context["key"] == key
    assert caught.value.fix


@pytest.fixture
def bin_folder(tmp_path):
    for name, mode in (("tool", 0o755), ("notes", 0o644)):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(mode)
    return tmp_path


def test_a_command_is_found_on_the_host_in_the_app_or_on_the_path(bin_folder):
    find_command([f"{bin_folder}/tool"], [], "")
    find_command(["./bin/run"], ["bin/run"], "")
    find_command(["bin/run"], ["bin/run"], "")
    find_command(["tool"], [], str(bin_folder))


@pytest.mark.parametrize(
    "program",
    ["/nowhere/tool", "{bin}/notes", "{bin}", "bin/walk", "../bin/run", "./run", "run", "notes", "nothing"],
)
def test_a_command_that_does_not_exist_is_refused_and_named(program, bin_folder):
    program = program.format(bin=bin_folder)
    with pytest.raises(CommandNotFound, match="'command' names") as caught:
        find_command([program, "x"], ["bin/run", "run"][: 1 if program != "run" else 2], str(bin_folder))
    assert repr(program) in caught.value.what
    assert "ship it in the app" in caught.value.fix
