"""The names of all that the read models keep in Redis."""

from __future__ import annotations

from events.store import Store

#: Raised whenever a model changes: what an older release kept is then written anew.
FORMAT = "4"


class Names:
    """Keys below ``fl:{site}:rm:``."""

    def __init__(self, store: Store) -> None:
        self._vault = store.vault
        self.prefix = store.keys.prefix + "rm:"
        #: Hash: position up to which all models were fed, and their format.
        self.cursor = self.prefix + "cursor"
        #: Sorted sets: all jobs by the time of their first event; all jobs, to be ranged by name.
        self.created = self.prefix + "by:created"
        self.ids = self.prefix + "by:id"
        #: Hashes of counts: events by type; outcomes of work; how long work took, by kind and bucket.
        self.types = self.prefix + "types"
        self.outcomes = self.prefix + "outcomes"
        self.durations = self.prefix + "durations"
        #: Hashes: bytes and messages that left, by day, target and job; runs by app and network.
        self.days_bytes = self.prefix + "egress:bytes"
        self.days_count = self.prefix + "egress:count"
        self.networks = self.prefix + "egress:networks"

    @property
    def record(self) -> str:
        """List: positions of the last events about the record itself."""
        return self.prefix + "record"

    @property
    def losses(self) -> str:
        """List: positions of all events that disclose a loss, or begin an epoch."""
        return self.prefix + "losses"

    @property
    def last_acts(self) -> str:
        """Hash: type of an event about the record itself -> position of the last one."""
        return self.prefix + "acts:last"

    @property
    def room(self) -> str:
        """List: how full memory and disk were, every few minutes, as JSON."""
        return self.prefix + "room"

    def app(self, app: str) -> str:
        """Sorted set: jobs that had this app, by the time of their first event."""
        return f"{self.prefix}app:{app}"

    def actor(self, actor: str) -> str:
        """Sorted set: jobs of which this actor asked something, by the time of their first event.

        Args:
            actor: the id, to be read or as a token; the key has it as a pseudonym.
        """
        if self._vault is not None:
            actor = self._vault.pseudonym(self._vault.reveal(actor))
        return f"{self.prefix}actor:{actor}"

    def life(self, job: str) -> str:
        """List: positions of the events of the job's life."""
        return f"{self.prefix}life:{job}"

    def tasks(self, job: str) -> str:
        """List: positions of the events of its tasks and streams, which may be many."""
        return f"{self.prefix}tasks:{job}"

    def attempts(self, job: str) -> str:
        """Hash: number of an attempt -> what is known of it, as JSON."""
        return f"{self.prefix}attempts:{job}"

    def moments(self, job: str) -> str:
        """Hash: version -> the job's state there, as JSON; for looking back at long jobs."""
        return f"{self.prefix}moments:{job}"

    def rows(self, what: str) -> str:
        """Hash: key of a row -> the row, as JSON."""
        return f"{self.prefix}{what}:rows"

    def order(self, what: str, only: str = "") -> str:
        """Sorted set: keys of rows, by the sequence of the event that brought them; of one job, or all."""
        return f"{self.prefix}{what}:order{':' + only if only else ''}"
