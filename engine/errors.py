"""The error catalogue: one class, one code, one HTTP status, one help page.

``docs/errors/`` is generated from these docstrings. Where the reference engine raises a
built-in type, the class derives from it too, so that a caller written for the reference
catches the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from events.errors import FlightlogError


class JobIdInvalid(FlightlogError, ValueError):
    """The job id is not one.

    A job id has 1 to 128 letters, digits, ``-`` and ``_``, begins with a letter or digit,
    and is not a name that the workspace uses itself (``startup``, ``local``, ...).
    """

    code, http, retry = "JOB_ID_INVALID", 422, "no"


class ArgumentInvalid(FlightlogError, ValueError):
    """An argument has the wrong type or a value that makes no sense.

    The message names the argument and what is expected.
    """

    code, http, retry = "ARGUMENT_INVALID", 422, "no"


class ArgumentTypeInvalid(ArgumentInvalid, TypeError):
    """An argument has the wrong type.

    The message names the argument and the type that is expected.
    """


class BadArchive(FlightlogError):
    """The app is not a zip that can be unpacked safely.

    Build it with ``flightlog deploy JOB FOLDER``, which zips a folder for you. Absolute
    paths, ``..``, backslashes, links, devices, names that collide and bombs are refused.
    """

    code, http, retry = "BAD_ARCHIVE", 422, "no"


class BadConfig(FlightlogError):
    """``config/config_fed_client.json`` is missing, is not JSON, or names nothing to run.

    Give it a ``command``: a list of strings, for instance ``["python", "train.py"]``.
    """

    code, http, retry = "BAD_CONFIG", 422, "no"


class CommandNotFound(FlightlogError):
    """The program that the app's ``command`` names does not exist here.

    Install it on this host, ship it in the app, or correct the first word of ``command``.
    """

    code, http, retry = "COMMAND_NOT_FOUND", 422, "no"


class JobUnknown(FlightlogError):
    """No job of that id is on this site's record.

    ``flightlog list`` shows the jobs that are.
    """

    code, http, retry = "JOB_UNKNOWN", 404, "no"


class JobLive(FlightlogError):
    """The job has a live app, and this call needs a job without one.

    Abort it first (``flightlog abort JOB --wait``) or wait for its end.
    """

    code, http, retry = "JOB_LIVE", 409, "later"


class JobBusy(FlightlogError):
    """The job is being deployed or deleted right now.

    Wait for the end of that: ``flightlog wait JOB``.
    """

    code, http, retry = "JOB_BUSY", 409, "later"


class DeployInProgress(FlightlogError):
    """A deploy of this job is under way.

    Wait for its outcome: ``flightlog wait JOB``.
    """

    code, http, retry = "DEPLOY_IN_PROGRESS", 409, "later"


class NotDeployed(FlightlogError):
    """The job has no app to start.

    Deploy one first: ``flightlog deploy JOB APP``.
    """

    code, http, retry = "NOT_DEPLOYED", 409, "no"


class NotStarted(FlightlogError):
    """The job has not been started, so there is nothing to abort.

    ``flightlog show JOB`` tells where it stands.
    """

    code, http, retry = "NOT_STARTED", 409, "no"


class NotLive(FlightlogError):
    """The job has no live app.

    Only a live app can report a status. ``flightlog show JOB`` tells how it ended.
    """

    code, http, retry = "NOT_LIVE", 409, "no"


class AlreadyStarted(FlightlogError):
    """The app is running already.

    Nothing is to be done; to run it anew, wait for its end or abort it.
    """

    code, http, retry = "ALREADY_STARTED", 409, "no"


class AlreadyStopped(FlightlogError):
    """The app has ended already.

    Nothing is to be done. ``flightlog show JOB`` tells how it ended.
    """

    code, http, retry = "ALREADY_STOPPED", 409, "no"


class StillRegistered(FlightlogError, RuntimeError):
    """An earlier start of this job has not ended yet.

    Wait for its end (``flightlog wait JOB``), then start again.
    """

    code, http, retry = "STILL_REGISTERED", 409, "no"


class Backwards(FlightlogError):
    """A status report would take the job back to where it was before.

    Nothing is to be done: a stopped app does not become a started one.
    """

    code, http, retry = "BACKWARDS", 409, "no"


class MetaDiffers(FlightlogError, RuntimeError):
    """The metadata at the start is not what was deployed.

    Deploy the job again with the new metadata, or start it with the deployed one.
    """

    code, http, retry = "META_DIFFERS", 409, "no"


class ResourcesLacking(FlightlogError, RuntimeError):
    """The site does not have the resources that the job asks for, at this moment.

    Wait for other jobs to end (``flightlog status`` shows who holds what) or ask for less.
    """

    code, http, retry = "RESOURCES_LACKING", 409, "no"


class ScopeDenied(FlightlogError):
    """The site does not allow the job's privacy scope.

    The site's ``local/privacy.json`` names the scopes that are allowed.
    """

    code, http, retry = "SCOPE_DENIED", 403, "no"


class ByocDenied(FlightlogError):
    """The app brings code of its own, and its submitter has no right to.

    The site's ``local/authorization.json`` grants the right ``byoc``.
    """

    code, http, retry = "BYOC_DENIED", 403, "no"


class SignatureBad(FlightlogError):
    """The app's signature is missing or does not verify against the site's root CA.

    Have it signed by a submitter whose certificate the root CA in ``startup/`` issued.
    """

    code, http, retry = "SIGNATURE_BAD", 403, "no"


class EngineDown(FlightlogError):
    """The engine is closed, or its site is not up.

    Start the site: ``flightlog up``.
    """

    code, http, retry = "ENGINE_DOWN", 503, "yes"


class NoWorker(FlightlogError, RuntimeError):
    """No worker took the work in time, so it was withdrawn.

    Nothing was done. Start the site's pool (``flightlog up`` or ``flightlog worker``).
    """

    code, http, retry = "NO_WORKER", 503, "yes"


class DiskFull(FlightlogError):
    """The workspace's disk has no room.

    Free some space, then call again; what stood there before is untouched.
    """

    code, http, retry = "DISK_FULL", 507, "yes"


class DeployFailedError(FlightlogError):
    """The deploy was recorded but did not succeed.

    The message gives the worker's reason. An app that was there before is untouched.
    """

    code, http, retry = "DEPLOY_FAILED", 500, "see record"


class DeleteFailedError(FlightlogError):
    """The run folder could not be removed, several times.

    The message gives the reason, for instance a mount or a busy file. Mend that, then
    ``flightlog delete JOB`` again.
    """

    code, http, retry = "DELETE_FAILED", 500, "see record"


class LaunchFailedError(FlightlogError, RuntimeError):
    """The app could not be launched.

    The message gives the worker's reason; ``flightlog why JOB`` tells the story.
    """

    code, http, retry = "LAUNCH_FAILED", 500, "see record"


class NetworkIsolationUnavailable(FlightlogError, RuntimeError):
    """The app was to run without a network, and this host does not allow that. It did not run.

    The message has the system's words and the limits that it has set. An app needs a network namespace
    of its own: run the site as root, or allow user namespaces (``sysctl kernel.unprivileged_userns_clone``,
    ``user.max_user_namespaces``; in a container, its seccomp profile). ``flightlog doctor`` tries it.
    """

    code, http, retry = "NETWORK_ISOLATION_UNAVAILABLE", 501, "no"


class CallTimeout(FlightlogError, RuntimeError):
    """The outcome is not known yet.

    The intent stays on the record until the time that is named. ``flightlog wait JOB``
    waits on; the record has the outcome in the end.
    """

    code, http, retry = "CALL_TIMEOUT", 504, "see record"


class PayloadTooLarge(FlightlogError, ValueError):
    """A message has more bytes than one may have.

    Send less, stream it, or raise ``FLIGHTLOG_PAYLOAD_MAX`` on both sides.
    """

    code, http, retry = "PAYLOAD_TOO_LARGE", 413, "no"


class TransferFailed(FlightlogError, RuntimeError):
    """A stream or a file did not come through to all of its targets.

    The message says to which, and why. ``flightlog transfers`` shows how far it came; the same file sent again goes
    on from there.
    """

    code, http, retry = "TRANSFER_FAILED", 502, "yes"


class StreamerDown(FlightlogError, RuntimeError):
    """The engine's streamer is shut down, so nothing can be streamed any more.

    ``shutdown_streamer`` was called, or the engine is closed. Open another engine.
    """

    code, http, retry = "STREAMER_DOWN", 503, "no"


class CellMissing(FlightlogError, RuntimeError):
    """The engine has no cell, so nothing can be sent.

    Give it one: ``engine.initialize_comm(cell)``; an engine made by ``ClientEngine.open``
    has one from the start.
    """

    code, http, retry = "CELL_MISSING", 503, "yes"


class AddressTaken(FlightlogError):
    """Another cell is there under this address, and lives.

    Two sites of one federation need two names. Where it is this site's own, of a moment ago, it lets
    go within seconds; ``flightlog status`` says whether this one is listening.
    """

    code, http, retry = "ADDRESS_TAKEN", 409, "later"


class SiteUnknown(FlightlogError):
    """There is no site in that folder.

    Name the workspace (``--workspace`` or ``FLIGHTLOG_WORKSPACE``), or make one:
    ``flightlog up --site NAME --workspace DIR``.
    """

    code, http, retry = "SITE_UNKNOWN", 404, "no"


class HostError(FlightlogError):
    """The operating system refused something: a file, a folder, the output.

    The message has its words and the path. Look at rights and space there.
    """

    code, http, retry = "HOST_ERROR", 500, "yes"


class NotAuthorised(FlightlogError):
    """The caller may not do this.

    Ask the site's operator for the right.
    """

    code, http, retry = "NOT_AUTHORISED", 403, "no"


class NotIdentified(NotAuthorised):
    """Nobody is known to ask: the code of ``NotAuthorised``, with the status 401.

    Show a token: ``flightlog token add NAME``, on the site's host.
    """

    http = 401


class PathUnknown(FlightlogError):
    """The status API has nothing at that path.

    ``/openapi.json`` lists what it has.
    """

    code, http, retry = "PATH_UNKNOWN", 404, "no"


class MethodNotAllowed(FlightlogError):
    """That path does not take this method.

    The answer's ``Allow`` names those that it takes.
    """

    code, http, retry = "METHOD_NOT_ALLOWED", 405, "no"


class MediaTypeWrong(FlightlogError):
    """The body has another content type than the path takes.

    The message names the one that it takes; send the body as that.
    """

    code, http, retry = "MEDIA_TYPE_WRONG", 415, "no"


class HostUnknown(FlightlogError):
    """The request names a host that this server does not go by.

    Whoever has a name of their own for it adds that to ``FLIGHTLOG_API_HOSTS``. A page of somebody else that had
    its name lead here would be stopped by this.
    """

    code, http, retry = "HOST_UNKNOWN", 421, "no"


class CrossSite(FlightlogError):
    """Another site's page asked the browser to send this.

    Commands come from this server's own pages, or from programs, which say nothing of an origin.
    """

    code, http, retry = "CROSS_SITE", 403, "no"


class PayloadInvalid(FlightlogError, ValueError):
    """A value cannot be sent, or what was received is not what a peer sends.

    The message names the place of the value. What can be sent: None, bool, int, float, str, bytes,
    lists, tuples, dicts, ``Shareable``, and numpy's arrays and scalars of numbers and fixed-width text.
    What was received and cannot be read was damaged, or comes from another version: send it again.
    """

    code, http, retry = "PAYLOAD_INVALID", 422, "no"


class KeyUnknown(FlightlogError):
    """No public key of that peer is on this site.

    Let the peer's operator run ``flightlog keys show``, compare the fingerprint by telephone, say,
    and take it in: ``flightlog keys trust FILE``.
    """

    code, http, retry = "KEY_UNKNOWN", 403, "no"


class SealBroken(FlightlogError):
    """A sealed message does not verify.

    It was altered or cut on its way, is sealed for somebody else, or its sender has other keys than
    the ones that are trusted here. Nothing of it was read. Compare the fingerprint with the one that
    ``flightlog keys show`` prints at the sender's; if it has new keys: ``flightlog keys trust FILE --replace``.
    """

    code, http, retry = "SEAL_BROKEN", 403, "no"


class LegalHold(FlightlogError):
    """The job is under a legal hold: nothing of it may be forgotten.

    ``flightlog why JOB`` says who set it and why. Whoever may lift it does so with
    ``flightlog hold JOB --lift --reason TEXT``.
    """

    code, http, retry = "LEGAL_HOLD", 409, "later"


class Retained(FlightlogError):
    """The job has to be kept for a while after its end, and that while is not over.

    The setting ``retention`` (days) says for how long.
    """

    code, http, retry = "RETAINED", 409, "later"


class NotDeleted(FlightlogError):
    """The job's run folder is still there, with whatever its app and its metadata hold.

    Delete it first: ``flightlog delete JOB``.
    """

    code, http, retry = "NOT_DELETED", 409, "later"


class ExportInvalid(FlightlogError):
    """The file is no export of Flightlog's, is cut off, or holds only a part of a history.

    What is to be imported is a whole history: ``flightlog export FILE`` without ``--job`` and ``--since``.
    """

    code, http, retry = "EXPORT_INVALID", 422, "no"


class SiteNotEmpty(FlightlogError):
    """The site has a history already, and another one cannot be put before it.

    Name a new folder: ``--workspace FOLDER``.
    """

    code, http, retry = "SITE_NOT_EMPTY", 409, "no"


class Unverifiable(FlightlogError):
    """It could not be verified: something that is needed for it is not there.

    The message says what. That says nothing about the record itself, good or bad.
    """

    code, http, retry = "UNVERIFIABLE", 422, "later"


def all_errors(root: type[FlightlogError] = FlightlogError) -> Iterator[type[FlightlogError]]:
    """Every error class below ``root`` that has a code of its own, in order of definition."""
    for cls in root.__subclasses__():
        if "code" in vars(cls):
            yield cls
        yield from all_errors(cls)


#: code -> class
CATALOGUE: dict[str, type[FlightlogError]] = {cls.code: cls for cls in all_errors()}


def from_code(code: str, what: str, fix: str = "", **context: object) -> FlightlogError:
    """The catalogue's error for ``code``; an unknown code gives the base class."""
    return CATALOGUE.get(code, FlightlogError)(what, fix, **context)
