"""What an event is about: one job, or the site itself."""

from __future__ import annotations

SITE = "site"
_JOB = "job/"


def job_subject(job_id: str) -> str:
    """The subject of a job's events: ``job/<id>``."""
    return _JOB + job_id


def job_of(subject: str) -> str | None:
    """The job id of a subject, or None for the site."""
    return subject[len(_JOB) :] if subject.startswith(_JOB) else None
