"""What server and sites say to each other beside tasks and aux messages (reference 7.2)."""

from __future__ import annotations

from typing import Final


class AdminTopic:
    """Commands of the server to a site, on the channel ``admin``."""

    DEPLOY: Final = "train.deploy"
    START: Final = "train.start_job"
    ABORT: Final = "train.abort"
    ABORT_TASK: Final = "train.abort_task"
    DELETE: Final = "train.delete_run"
    STATUS: Final = "train.check_status"


#: A site says that it is there, on the channel ``task``.
REGISTER: Final = "register"
