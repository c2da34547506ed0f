"""The names and codes that a component author needs.

Values that travel or that a site's configuration may contain are NVFLARE's, so that a
component written for it finds what it expects (reference 4.6, 6.1, appendix B).
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final


class EventType(StrEnum):
    """What the engine tells its components about, in the client parent (reference, appendix B) and in a job.

    A component may fire events of its own: any other string is an event type too.
    """

    SYSTEM_BOOTSTRAP = "_system_bootstrap"
    SYSTEM_START = "_system_start"
    SYSTEM_END = "_system_end"

    BEFORE_CLIENT_REGISTER = "_before_client_register"
    AFTER_CLIENT_REGISTER = "_after_client_register"
    BEFORE_CLIENT_HEARTBEAT = "_before_client_heartbeat"
    AFTER_CLIENT_HEARTBEAT = "_after_client_heartbeat"

    AUTHORIZE_COMMAND_CHECK = "_authorize_command_check"
    BEFORE_CHECK_RESOURCE_MANAGER = "_before_check_resource_manager"

    BEFORE_JOB_LAUNCH = "_before_job_launch"
    AFTER_JOB_LAUNCH = "_after_job_launch"
    JOB_COMPLETED = "_job_completed"

    START_RUN = "_start_run"
    END_RUN = "_end_run"
    BEFORE_TASK_EXECUTION = "_before_task_execution"
    AFTER_TASK_EXECUTION = "_after_task_execution"

    TASK_ASSIGNMENT_SENT = "_task_assignment_sent"
    TASK_RESULT_RECEIVED = "_task_result_received"


class EventScope(StrEnum):
    """How far an event goes: this process, or every site of the federation."""

    LOCAL = "local"
    FEDERATION = "federation"


class ReturnCode(StrEnum):
    """What a reply says about its request (reference 4.6)."""

    OK = "OK"
    BAD_PEER_CONTEXT = "BAD_PEER_CONTEXT"
    BAD_REQUEST_DATA = "BAD_REQUEST_DATA"
    BAD_TASK_DATA = "BAD_TASK_DATA"
    COMMUNICATION_ERROR = "COMMUNICATION_ERROR"
    TIMEOUT = "TIMEOUT"
    ERROR = "ERROR"
    EXECUTION_EXCEPTION = "EXECUTION_EXCEPTION"
    EXECUTION_RESULT_ERROR = "EXECUTION_RESULT_ERROR"
    HANDLER_EXCEPTION = "HANDLER_EXCEPTION"
    MISSING_PEER_CONTEXT = "MISSING_PEER_CONTEXT"
    RUN_MISMATCH = "RUN_MISMATCH"
    TASK_ABORTED = "TASK_ABORTED"
    TASK_DATA_FILTER_ERROR = "TASK_DATA_FILTER_ERROR"
    TASK_RESULT_FILTER_ERROR = "TASK_RESULT_FILTER_ERROR"
    TASK_UNKNOWN = "TASK_UNKNOWN"
    TASK_UNSUPPORTED = "TASK_UNSUPPORTED"
    TOPIC_UNKNOWN = "TOPIC_UNKNOWN"
    MODEL_UNRECOGNIZED = "MODEL_UNRECOGNIZED"
    VALIDATE_TYPE_UNKNOWN = "VALIDATE_TYPE_UNKNOWN"
    EMPTY_RESULT = "EMPTY_RESULT"
    UNSAFE_JOB = "UNSAFE_JOB"
    EARLY_TERMINATION = "EARLY_TERMINATION"
    SERVER_NOT_READY = "SERVER_NOT_READY"
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"


class ProcessType(StrEnum):
    """Which of a federation's processes this one is: server or client, parent or job."""

    SERVER_PARENT = "SP"
    SERVER_JOB = "SJ"
    CLIENT_PARENT = "CP"
    CLIENT_JOB = "CJ"


class ReservedKey:
    """Context and header names that belong to the engine. ``remove_prop`` spares them."""

    MANAGER: Final = "__manager__"
    ENGINE: Final = "__engine__"
    RUN_NUM: Final = "__run_num__"
    IDENTITY_NAME: Final = "__identity_name__"
    FQSN: Final = "__fqsn__"
    IS_LEAF: Final = "__is_leaf__"
    PEER_CTX: Final = "__peer_ctx__"
    RC: Final = "__rc__"
    COOKIE_JAR: Final = "__cookie_jar__"
    HEADERS: Final = "__headers__"
    TOPIC: Final = "__topic__"
    PEER_PROPS: Final = "__peer_props__"
    RUN_ABORT_SIGNAL: Final = "__run_abort_signal__"
    PROCESS_TYPE: Final = "__process_type__"
    AUDIT_EVENT_ID: Final = "__audit_event_id__"


class FLContextKey:
    """Props of an ``FLContext`` that handlers read or set (reference, appendix B)."""

    CURRENT_RUN: Final = ReservedKey.RUN_NUM
    PEER_CONTEXT: Final = ReservedKey.PEER_CTX
    PROCESS_TYPE: Final = ReservedKey.PROCESS_TYPE
    RUN_ABORT_SIGNAL: Final = ReservedKey.RUN_ABORT_SIGNAL

    ARGS: Final = "__args__"
    SECURE_MODE: Final = "__secure_mode__"
    WORKSPACE_ROOT: Final = "__workspace_root__"
    WORKSPACE_OBJECT: Final = "__workspace_object__"
    SITE_OBJ: Final = "_site_obj_"
    CLIENT_NAME: Final = "__client_name__"
    FED_CLIENT: Final = "__fed_client__"
    CLIENT_CONFIG: Final = "__client_config__"
    SERVER_CONFIG: Final = "__server_config__"
    #: A secret: it never enters the log.
    CLIENT_TOKEN: Final = "__client_token"  # noqa: S105 - the name of the prop

    EVENT_ID: Final = "__event_id__"
    EVENT_DATA: Final = "__event_data__"
    EVENT_ORIGIN: Final = "__event_origin__"
    EVENT_SCOPE: Final = "__event_scope__"
    #: dict of handler name -> exception, filled by ``engine.component.dispatch``.
    EXCEPTIONS: Final = "__exceptions__"

    CURRENT_JOB_ID: Final = "__current_job_id__"
    JOB_META: Final = "__job_meta__"
    JOB_LAUNCHER: Final = "_job_launcher"
    #: A secret in part: it holds the job's credentials.
    JOB_PROCESS_ARGS: Final = "__job_process_args__"
    #: Set by a handler of BEFORE_CHECK_RESOURCE_MANAGER that wants the job not scheduled.
    JOB_BLOCK_REASON: Final = "__job_block_reason"
    CLIENT_RESOURCE_SPECS: Final = "__client_resource_specs"

    COMMAND_NAME: Final = "_command_name"
    SECURITY_ITEMS: Final = "_security_items"
    AUTHORIZATION_RESULT: Final = "_authorization_result"
    AUTHORIZATION_REASON: Final = "_authorization_reason"


class SystemComponents:
    """Ids under which the engine looks a component up (reference 12.3)."""

    RESOURCE_MANAGER: Final = "resource_manager"
    RESOURCE_CONSUMER: Final = "resource_consumer"
    APP_DEPLOYER: Final = "app_deployer"


class ClientStatus(IntEnum):
    """Where a job's app stands, as the reference counts it (reference 2.5)."""

    NOT_STARTED = 0
    STARTING = 1
    STARTED = 2
    STOPPED = 3
    EXCEPTION = 4

    @property
    def text(self) -> str:
        """The words that ``check_status`` and ``get_engine_status`` show."""
        return self.name.lower().replace("_", " ")


class ExitCode(IntEnum):
    """Exit codes of an app that mean something to the server (reference 2.3)."""

    SUCCESS = 0
    EXECUTION_ERROR = 1
    ABORTED = 9
    EXCEPTION = 101
    UNSAFE_COMPONENT = 102
    CONFIG_ERROR = 103
    INFRASTRUCTURE_ERROR = 104
    UNKNOWN = 127


_REPORTED: Final = frozenset(ExitCode) - {ExitCode.SUCCESS, ExitCode.EXECUTION_ERROR, ExitCode.UNKNOWN}


def exit_reason(code: int) -> str | None:
    """The reason that is reported to the server with an exit code (reference 2.3).

    Args:
        code: the resolved exit code; any integer.

    Returns:
        The words of the table, or None for a code that is reported without a reason.
    """
    return ExitCode(code).name.lower().replace("_", " ") if code in _REPORTED else None
