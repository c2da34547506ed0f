"""THE table: which command may come in which state, and where each event leads.

This is the only place where a transition is written. ``engine.machine`` makes the ``transitions``
machine and the diagram from it, ``engine.fold`` the compiled fold, ``engine.catalogue`` the docs page.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job stands."""

    NEW = "new"
    DEPLOYING = "deploying"
    REDEPLOYING = "redeploying"
    DEPLOYED = "deployed"
    DEPLOY_FAILED = "deploy_failed"
    STARTING = "starting"
    RUNNING = "running"
    FINISHING = "finishing"
    ABORTING = "aborting"
    FINISHED = "finished"
    FAILED = "failed"
    ABORTED = "aborted"
    LAUNCH_FAILED = "launch_failed"
    DELETING = "deleting"
    DELETE_FAILED = "delete_failed"
    DELETED = "deleted"


S = State
#: An app is in place, and no process of it.
RESTING = (S.DEPLOYED, S.FINISHED, S.FAILED, S.ABORTED, S.LAUNCH_FAILED)
#: An app is being launched, runs, or is about to end.
LIVE = (S.STARTING, S.RUNNING, S.FINISHING, S.ABORTING)
#: A worker or the caretaker has its hands on the run folder.
BUSY = (S.DEPLOYING, S.REDEPLOYING, S.DELETING)
#: Nothing is there, or only what a failure left.
BARE = (S.NEW, S.DELETED)
BROKEN = (S.DEPLOY_FAILED, S.DELETE_FAILED)
#: Nothing will happen by itself.
AT_REST = RESTING + BARE + BROKEN

REPEAT = "="  # answered from the record, with a CallRepeated
NOTED = "+"  # recorded, with no transition

# command -> (states, answer) rows; an answer is an event, -CODE, REPEAT or NOTED
COMMANDS: dict[str, tuple[tuple[tuple[State, ...], str], ...]] = {
    "deploy_app": (
        (BARE + BROKEN + RESTING, "DeployRequested"),
        ((S.DEPLOYING, S.REDEPLOYING), "-DEPLOY_IN_PROGRESS"),
        (LIVE, "-JOB_LIVE"),
        ((S.DELETING,), "-JOB_BUSY"),
    ),
    "start_app": (
        (RESTING, "StartRequested"),
        (BARE, "-JOB_UNKNOWN"),
        (BROKEN, "-NOT_DEPLOYED"),
        ((S.DEPLOYING, S.REDEPLOYING), "-DEPLOY_IN_PROGRESS"),
        ((S.RUNNING,), "-ALREADY_STARTED"),
        ((S.STARTING, S.FINISHING, S.ABORTING), "-STILL_REGISTERED"),
        ((S.DELETING,), "-JOB_BUSY"),
    ),
    "abort_app": (
        ((S.STARTING, S.RUNNING, S.FINISHING), "AbortRequested"),
        ((S.ABORTING,), REPEAT),  # but a user's abort goes over a heartbeat's
        (BARE, "-JOB_UNKNOWN"),
        ((*BROKEN, S.DEPLOYED, S.LAUNCH_FAILED, S.DEPLOYING, S.REDEPLOYING), "-NOT_STARTED"),
        ((S.FINISHED, S.FAILED, S.ABORTED, S.DELETING), "-ALREADY_STOPPED"),
    ),
    "delete_run": (
        (RESTING + BROKEN, "DeleteRequested"),
        (BARE, "-JOB_UNKNOWN"),
        ((S.DEPLOYING, S.REDEPLOYING), "-JOB_BUSY"),
        (LIVE, "-JOB_LIVE"),
        ((S.DELETING,), REPEAT),
    ),
    "notify_started": (
        ((S.STARTING,), "AppStarted"),
        ((S.RUNNING,), REPEAT),
        ((S.FINISHING,), "-BACKWARDS"),
        ((S.ABORTING,), NOTED),
        (BARE, "-JOB_UNKNOWN"),
        (BROKEN + RESTING + BUSY, "-NOT_LIVE"),
    ),
    "notify_stopped": (
        ((S.STARTING, S.RUNNING), "AppStopping"),
        ((S.FINISHING,), REPEAT),
        ((S.ABORTING,), NOTED),
        (BARE, "-JOB_UNKNOWN"),
        (BROKEN + RESTING + BUSY, "-NOT_LIVE"),
    ),
}

# event -> (sources, destination) rows; None: the state stays
EVENTS: dict[str, tuple[tuple[tuple[State, ...], State | None], ...]] = {
    "DeployRequested": ((BARE + BROKEN, S.DEPLOYING), (RESTING, S.REDEPLOYING)),
    "DeploySucceeded": (((S.DEPLOYING, S.REDEPLOYING), S.DEPLOYED),),
    "DeployFailed": (((S.DEPLOYING,), S.DEPLOY_FAILED), ((S.REDEPLOYING,), S.DEPLOYED)),
    "DeployExpired": (((S.DEPLOYING,), S.DEPLOY_FAILED), ((S.REDEPLOYING,), S.DEPLOYED)),
    "StartRequested": ((RESTING, S.STARTING),),
    "AppSpawned": ((LIVE, None),),  # an app's own notice may overtake the record of its spawn
    "AppStarted": (((S.STARTING,), S.RUNNING), ((S.ABORTING,), None)),
    "AppStopping": (((S.STARTING, S.RUNNING), S.FINISHING), ((S.ABORTING,), None)),
    "LaunchFailed": (((S.STARTING, S.RUNNING, S.FINISHING), S.LAUNCH_FAILED), ((S.ABORTING,), S.ABORTED)),
    "LaunchExpired": (((S.STARTING, S.RUNNING, S.FINISHING), S.LAUNCH_FAILED), ((S.ABORTING,), S.ABORTED)),
    "AbortRequested": ((LIVE, S.ABORTING),),
    "AppFinished": ((LIVE, S.FINISHED),),
    "AppFailed": ((LIVE, S.FAILED),),
    "AppAborted": ((LIVE, S.ABORTED),),
    "AppLost": ((LIVE, S.FAILED),),
    "DeleteRequested": ((RESTING + BROKEN, S.DELETING),),
    "DeleteSucceeded": (((S.DELETING,), S.DELETED),),
    "DeleteFailed": (((S.DELETING,), None),),
    "DeleteAbandoned": (((S.DELETING,), S.DELETE_FAILED),),
}

#: Guards, by event: what must hold beside the state. They are enforced by the fold.
GUARDS = {
    "LaunchFailed": "the attempt has not spawned",
    "LaunchExpired": "the attempt has not spawned",
}

# Work that an event opens (+) and closes (-). Every end of an attempt leaves it settled.
_END = "-launch -app -abort +settle"
WORK: dict[str, str] = {
    "DeployRequested": "+deploy",
    "DeploySucceeded": "-deploy",
    "DeployFailed": "-deploy",
    "DeployExpired": "-deploy",
    "StartRequested": "+launch",
    "AppSpawned": "-launch +app",
    "LaunchFailed": _END,
    "LaunchExpired": _END,
    "AbortRequested": "+abort",
    "AppFinished": _END,
    "AppFailed": _END,
    "AppAborted": _END,
    "AppLost": _END,
    "DeleteRequested": "+delete",
    "DeleteSucceeded": "-delete",
    "DeleteAbandoned": "-delete",
    "JobSettled": "-settle",
    "AuxRequested": "+aux",
    "AuxSent": "-aux",
    "AuxReplied": "-aux",
    "AuxFailed": "-aux",
    "AuxOutcomeUnknown": "-aux",
    "TransferOpened": "+transfer",
    "TransferClosed": "-transfer",
}

#: Who brings each kind of work to its end, and what happens where nobody does.
EXECUTORS = {
    "deploy": ("an RQ worker", "expires after its deadline, or fails after its attempts"),
    "launch": ("an RQ worker", "expires after its deadline, or fails after its attempts"),
    "app": ("the caretaker", "waits, visibly; an operator may declare it lost"),
    "abort": ("the caretaker", "waits, visibly"),
    "delete": ("the caretaker", "is given up after its attempts"),
    "settle": ("the reactor", "waits, visibly"),
    "aux": ("an io worker and the collector", "fails at its deadline, or after its attempts"),
    "transfer": ("its engine and an io worker", "ends when it stalls; the collector ends it where a process died"),
}

CLIENT_STATUS: dict[State, str] = {
    **dict.fromkeys(BARE + BROKEN[:1], "not started"),
    **dict.fromkeys((S.DEPLOYING, S.REDEPLOYING, S.DEPLOYED), "not started"),
    S.STARTING: "starting",
    S.RUNNING: "started",
    **dict.fromkeys((S.FINISHING, S.FINISHED, S.ABORTED, S.FAILED, S.DELETING, S.DELETE_FAILED), "stopped"),
    S.LAUNCH_FAILED: "exception",
}  # aborting: the furthest of starting, started, stopped that was seen


def compiled_commands() -> dict[str, dict[str, str]]:
    """Command -> state -> answer."""
    return {
        command: {state.value: answer for states, answer in rows for state in states}
        for command, rows in COMMANDS.items()
    }


def compiled_events() -> dict[str, dict[str, str]]:
    """Event -> source -> destination."""
    return {
        event: {state.value: (dest or state).value for states, dest in rows for state in states}
        for event, rows in EVENTS.items()
    }


#: The first event of an epoch says why it began.
OPENS_EPOCH = frozenset(("HistoryLost", "BackupRestored", "Imported"))
#: What is done with the record itself: whoever examines it sees these first.
OF_THE_RECORD = frozenset(
    (
        *("ReviewRecorded", "Verified", "Exported", "Imported", "Erased", "HoldSet", "HoldLifted", "KeyRotated"),
        *("HistoryLost", "BackupRestored", "WitnessRefused", "AccessChanged", "RoomLow"),
    )
)
