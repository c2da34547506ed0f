"""How tasks travel between server and job: topics on the channel ``task``, and headers."""

from __future__ import annotations

from typing import Final

TASK_ID: Final = "task_id"
TASK_NAME: Final = "task_name"


class TaskTopic:
    """Topics on the channel ``task``."""

    ASSIGN: Final = "assign"
    RESULT: Final = "task_result"
    ABORT: Final = "abort_task"
    END_RUN: Final = "end_run"
