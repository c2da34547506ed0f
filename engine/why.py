"""A job's story in plain sentences, from its events alone."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from engine.present import OUTCOMES
from events.envelope import Event

Said = Callable[[Mapping[str, Any], str], str]


def story(
    events: Iterable[Event], look: Callable[[str], Event | None] = lambda position: None
) -> Iterator[tuple[str, str, str]]:
    """(time, sentence, position) per event that matters to a person, oldest first.

    Args:
        events: of one job.
        look: finds the event at a position: what came of another job, or of the site, is told with its cause.
    """
    claimed = ""
    told: set[str] = set()
    for event in events:
        rest = event.rest()
        cause = rest.get("cause")
        because = look(cause) if cause and cause not in told else None
        told.add(event.position)
        if because is not None and because.subject != event.subject:
            told.add(because.position)
            reason = said(because) or f"{because.type}."
            yield _clock(because.ms), f"[{because.subject}] {reason} What follows came of it.", because.position
        body, who = rest["body"], _who(rest["actor"])
        if event.type == "WorkClaimed":
            if body["token"] == claimed:
                continue
            claimed = body["token"]
        say = SENTENCES.get(event.type)
        if say is not None:
            yield _clock(event.ms), say(body, who), event.position


def said(event: Event) -> str | None:
    """An event as a sentence; None for one that says nothing to a person."""
    say = SENTENCES.get(event.type)
    rest = event.rest()
    return say(rest["body"], _who(rest["actor"])) if say is not None else None


def consequences(events: Iterable[Event], positions: set[str], subject: str) -> Iterator[tuple[str, str, str]]:
    """What came of a job elsewhere: events of other subjects whose cause is one of its own.

    Args:
        events: of the whole log, from the job's first on.
        positions: of the job's events.
        subject: of the job.
    """
    for event in events:
        if event.subject != subject and event.stored().get("cause") in positions:
            told = said(event) or f"{event.type}."
            yield _clock(event.ms), f"[{event.subject}] {told}", event.position


def _clock(ms: str) -> str:
    return datetime.fromtimestamp(int(ms) / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _who(actor: Mapping[str, Any]) -> str:
    how = {"os-uid": "known from the operating system", "none": "not verified"}.get(actor["auth"], actor["auth"])
    name = f"{actor['id']} ({actor['kind']} by {actor['via']}, {how}"
    if actor["kind"] == "system":
        return str(actor["id"])
    if actor.get("claimed"):
        name += f", who says to be {actor['claimed']}"
    return name + ")"


def _because(body: Mapping[str, Any]) -> str:
    return f" Reason given: {body['reason']}." if body.get("reason") else ""


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def _deploy(body: Mapping[str, Any], who: str) -> str:
    signed = f", signed by {', '.join(body['signers'])}" if body["signers"] else ", not signed"
    return (
        f"{who} asked to deploy app {body['app']} ({_bytes(body['size'])}, sha256 {body['sha256'][:12]}…{signed})."
        f"{_because(body)}"
    )


def _expired(what: str) -> Said:
    texts = {
        "deadline": "no worker took it before its deadline",
        "withdrawn": "the caller withdrew it before a worker took it",
        "attempts": "its attempts were used up",
        "aborted": "it was aborted before it was let go",
    }
    return lambda body, who: f"The {what} never happened: {texts[body['why']]}."


def _start(body: Mapping[str, Any], who: str) -> str:
    given = f" with {body['resources']}" if body["resources"] else ""
    network = ", without a network" if body.get("network") == "none" else ""
    return f"{who} asked to start it{given}{network} (attempt {body['attempt']}).{_because(body)}"


def _spawned(body: Mapping[str, Any], who: str) -> str:
    network = "with the network open" if body["network"] == "open" else "without a network"
    return f"Its process {body['pid']} was started on host {body['host']}, {network}."


def _end(how: str) -> Said:
    def say(body: Mapping[str, Any], who: str) -> str:
        if body["exit_code"] is not None:
            text = f"It {how} with exit code {body['exit_code']}"
        else:
            text = f"It {how} by signal {signal.Signals(body['signal']).name}"
        text += f" after {body['duration']:.1f} s"
        if body["outcome"] not in (0, body["exit_code"]):
            text += f", which counts as {OUTCOMES.get(body['outcome'], body['outcome'])}"
        if body["signalled_before"]:
            text += ", after it had been told to end"
        if body["killed"]:
            text += f"; {body['killed']} of its processes had to be killed"
        return text + "."

    return say


def _abort(body: Mapping[str, Any], who: str) -> str:
    by = {
        "user": who,
        "heartbeat": f"{who}, by the server's heartbeat,",
        "server": f"{who}, for the server,",
        "deadline": "A deadline",
    }[body["origin"]]
    return f"{by} asked to abort it, with {body['grace']:g} s of grace.{_because(body)}"


def _ends(body: Mapping[str, Any]) -> str:
    return f"to {', '.join(body['targets'])}" if body["direction"] == "out" else f"from {body['sender']}"


SENTENCES: dict[str, Said] = {
    "DeployRequested": _deploy,
    "DeploySucceeded": lambda b, who: f"The app was put in place: {b['files']} files, {_bytes(b['bytes'])}.",
    "DeployFailed": lambda b, who: f"The deploy failed ({b['code']}): {b['error']}",
    "DeployExpired": _expired("deploy"),
    "StartRequested": _start,
    "WorkClaimed": lambda b, who: f"Worker {b['worker'].rpartition(':')[0]} took the {b['work'].partition('_')[0]}.",
    "LaunchFailed": lambda b, who: f"The launch failed ({b['code']}): {b['error']}",
    "LaunchExpired": _expired("launch"),
    "AppSpawned": _spawned,
    "AppStarted": lambda b, who: (
        f"It runs (as said by the {b['by']})." if b["by"] == "launcher" else f"It runs, as {b['by']} reported."
    ),
    "AppStopping": lambda b, who: f"Its work is over, as {b['by']} reported; its process may still be there.",
    "AbortRequested": _abort,
    "AbortSignalled": lambda b, who: "Its keeper was told to end it.",
    "AppFinished": _end("ended well,"),
    "AppFailed": _end("failed"),
    "AppAborted": _end("was ended"),
    "AppLost": lambda b, who: (
        f"Its end was not seen: {b['reason']}." + (f" Declared by {b['declared_by']}." if b["declared_by"] else "")
    ),
    "LateExit": _end("ended late,"),
    "AppAdopted": lambda b, who: f"A new caretaker on host {b['host']} took over the watch; the app ran on.",
    "OutputClosed": lambda b, who: f"Its output is complete: {_bytes(b['bytes'])}, sha256 {b['sha256'][:12]}….",
    "ResourcesRestored": lambda b, who: f"The reopened engine took hold again of {b['resources']} for it.",
    "ResourcesFreed": lambda b, who: f"{b['resources']} went back ({b['why']}).",
    "JobSettled": lambda b, who: (
        "All that its end brings was done"
        + (" (who has its resources is not known)." if b["freed"] == "unknown" else ".")
    ),
    "DeleteRequested": lambda b, who: f"{who} asked to delete its run folder.{_because(b)}",
    "DeleteSucceeded": lambda b, who: (
        f"The run folder is gone ({_bytes(b['bytes'])})." if b["existed"] else "There was no run folder to remove."
    ),
    "DeleteFailed": lambda b, who: f"The run folder could not be removed: {b['error']}. It is tried again.",
    "DeleteAbandoned": lambda b, who: "The delete was given up.",
    "TaskReceived": lambda b, who: f"{b['sender']} gave it task {b['task']} ({_bytes(b['size'])}).",
    "TaskStarted": lambda b, who: f"It begins with task {b['task']}.",
    "TaskDone": lambda b, who: (
        f"Task {b['task']} is done after {b['ms'] / 1000:.1f} s: {b['code']}, a result of {_bytes(b['size'])}."
    ),
    "RunEndRequested": lambda b, who: f"{b['sender']} said that the run is over.",
    "TaskAbortRequested": lambda b, who: f"{who} asked it to give up its current task.{_because(b)}",
    "AuxFailed": lambda b, who: f"Message {b['id'][:8]}… failed ({b['code']}): {b['why']}.",
    "AuxOutcomeUnknown": lambda b, who: f"What came of message {b['id'][:8]}… is not known: {b['why']}.",
    "AuxReplyLost": lambda b, who: f"The answer to message {b['id'][:8]}… was lost ({b['code']}): {b['why']}.",
    "TransferOpened": lambda b, who: (
        f"A stream {_ends(b)} began: {b['file'] or b['channel'] + ':' + b['topic']}, by {who}."
    ),
    "TransferResumed": lambda b, who: f"Stream {b['id'][:8]}… went on with object {b['at']}: {b['why']}.",
    "TransferClosed": lambda b, who: (
        f"Stream {b['id'][:8]}… ended ({b['code']}{': ' + b['why'] if b['why'] else ''}) "
        f"after {b['objects']} objects, {_bytes(b['bytes'])}."
    ),
    "MessageRefused": lambda b, who: f"A message from {b['sender']} was refused ({b['code']}): {b['why']}.",
    "LogSharingSet": lambda b, who: f"{who} set what the server is sent of its log to: {b['what']}.{_because(b)}",
    "JobLogConfigured": lambda b, who: f"{who} set its logging to {b['config']}.",
    "ErrorsReset": lambda b, who: f"{who} had it forget its errors.",
    "CallRefused": lambda b, who: f"{who} called {b['method']} and was refused ({b['code']}): {b['message']}",
    "Erased": lambda b, who: f"{who} had its personal fields forgotten: its key was destroyed.{_because(b)}",
    "HoldSet": lambda b, who: f"{who} put it under a legal hold.{_because(b)}",
    "HoldLifted": lambda b, who: f"{who} lifted the legal hold.{_because(b)}",
    "CallRepeated": lambda b, who: f"{who} called {b['method']} again while it was {b['state']}.",
}
