from __future__ import annotations

import logging
from typing import Any

import pytest

from engine.component import MAX_EVENT_DEPTH, FLComponent, dispatch
from engine.constants import (
    ClientStatus,
    EventScope,
    EventType,
    ExitCode,
    FLContextKey,
    ReturnCode,
    exit_reason,
)
from engine.context import FLContext, FLContextManager
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid


class Hearing(FLComponent):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        self.heard.append(event_type)


class Failing(FLComponent):
    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        raise LookupError("no such thing")


class Engine:
    """What ``fire_event`` of a component needs of an engine."""

    def __init__(self, *components: FLComponent) -> None:
        self.components = list(components)
        self.contexts = FLContextManager(self, "site-1")

    def new_context(self) -> FLContext:
        return self.contexts.new_context()

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        dispatch(event_type, self.components, fl_ctx)


def test_every_component_hears_an_event_in_order() -> None:
    order: list[str] = []

    class Ordered(FLComponent):
        def __init__(self, label: str) -> None:
            self.label = label

        def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
            order.append(self.label)

    assert dispatch("e", [Ordered("a"), Ordered("b"), Ordered("c")], FLContext()) == []
    assert order == ["a", "b", "c"]


def test_an_event_type_is_its_string() -> None:
    component = Hearing()
    dispatch(EventType.SYSTEM_START, [component], FLContext())
    assert component.heard == ["_system_start"]


def test_a_registered_callback_wins_over_handle_event() -> None:
    component = Hearing()
    component.register_event_handler(
        "e", lambda event, ctx, **kwargs: component.heard.append((event, kwargs)), more=1
    )
    dispatch("e", [component], FLContext())
    dispatch("other", [component], FLContext())
    assert component.heard == [("e", {"more": 1}), "other"]


def test_a_callback_can_be_registered_for_several_events_and_each_once() -> None:
    component, calls = Hearing(), []

    def callback(event: str, ctx: FLContext, label: str) -> None:
        calls.append((event, label))

    component.register_event_handler(["a", "b"], callback, label="first")
    component.register_event_handler("a", callback, label="second")
    dispatch("a", [component], FLContext())
    dispatch("b", [component], FLContext())
    assert calls == [("a", "first"), ("b", "first")]
    assert list(component.get_event_handlers()) == ["a", "b"]


def test_callbacks_are_one_components_own() -> None:
    one, other = Hearing(), Hearing()
    one.register_event_handler("e", lambda event, ctx: None)
    dispatch("e", [one, other], FLContext())
    assert (one.heard, other.heard) == ([], ["e"])


@pytest.mark.parametrize("event_types", [1, None, ["e", 2], {"e": 1}])
def test_l9_an_event_type_that_is_no_string_registers_nothing(event_types: Any) -> None:
    component = Hearing()
    with pytest.raises(TypeError):
        component.register_event_handler(event_types, lambda event, ctx: None)
    assert component.get_event_handlers() == {}


def test_l9_a_handler_that_cannot_be_called_is_not_registered() -> None:
    component = Hearing()
    with pytest.raises(ArgumentTypeInvalid, match="callable"):
        component.register_event_handler("e", "callback")  # type: ignore[arg-type]
    assert component.get_event_handlers() == {}


def test_a_failing_handler_does_not_keep_the_event_from_the_next(caplog: pytest.LogCaptureFixture) -> None:
    failing, hearing, ctx = Failing(), Hearing(), FLContext()
    [(name, error)] = dispatch("e", [failing, hearing], ctx)
    assert name == "Failing"
    assert isinstance(error, LookupError)
    assert hearing.heard == ["e"]
    assert ctx.get_prop(FLContextKey.EXCEPTIONS) == {"Failing": error}
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.name.endswith("test_component.Failing")
    assert record.exc_info is not None


def test_every_failure_is_returned_even_of_components_with_one_name() -> None:
    failures = dispatch("e", [Failing(), Failing()], FLContext())
    assert [name for name, _ in failures] == ["Failing", "Failing"]


def test_exceptions_stay_in_their_own_context() -> None:
    manager = FLContextManager()
    dispatch("e", [Failing()], manager.new_context())
    assert manager.new_context().get_prop(FLContextKey.EXCEPTIONS) is None


def test_an_exit_request_is_not_a_failure_of_a_handler() -> None:
    class Exiting(FLComponent):
        def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dispatch("e", [Exiting()], FLContext())
    assert dispatch("e", [Hearing()], FLContext()) == [], "the depth is back where it was"


def test_l9_a_stranger_among_the_handlers_is_a_type_error_before_anyone_hears() -> None:
    hearing = Hearing()
    with pytest.raises(TypeError, match="must be an FLComponent, not str"):
        dispatch("e", [hearing, "stranger"], FLContext())  # type: ignore[list-item]
    assert hearing.heard == []


def test_a_component_added_by_a_handler_hears_the_next_event_only() -> None:
    late, components = Hearing(), list[FLComponent]()

    class Adding(FLComponent):
        def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
            components.append(late)

    components.append(Adding())
    dispatch("first", components, FLContext())
    assert late.heard == []
    dispatch("second", components, FLContext())
    assert late.heard == ["second"]


@pytest.mark.parametrize("fresh_context", [False, True])
def test_events_that_fire_each_other_without_end_are_stopped(fresh_context: bool) -> None:
    errors: list[RuntimeError] = []

    class Firing(FLComponent):
        times = 0

        def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
            self.times += 1
            ctx = fl_ctx.get_engine().new_context() if fresh_context else fl_ctx
            try:
                self.fire_event(event_type, ctx)
            except RuntimeError as error:
                errors.append(error)
                raise

    firing = Firing()
    engine = Engine(firing)
    engine.fire_event("e", engine.new_context())
    assert firing.times == MAX_EVENT_DEPTH + 1
    assert len(errors) == 1, "the innermost handler failed; the others went on"
    engine.fire_event("e", engine.new_context())
    assert firing.times == 2 * (MAX_EVENT_DEPTH + 1), "the depth is back where it was"


def test_every_handler_sees_the_data_of_its_own_event() -> None:
    seen: list[tuple[str, Any, str]] = []

    class Relaying(FLComponent):
        def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
            if event_type == "outer":
                fl_ctx.set_prop(FLContextKey.EVENT_DATA, "inner data", sticky=False)
                self.fire_event("inner", fl_ctx)

    class Seeing(FLComponent):
        def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
            data = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
            seen.append((event_type, data, fl_ctx.get_prop(FLContextKey.EVENT_ID)))

    engine = Engine(Relaying(), Seeing())
    ctx = engine.new_context()
    ctx.set_prop(FLContextKey.EVENT_DATA, "outer data", sticky=False)
    engine.fire_event("outer", ctx)
    assert [each[:2] for each in seen] == [("inner", "inner data"), ("outer", "outer data")]
    assert seen[0][2] != seen[1][2]
    assert ctx.get_prop(FLContextKey.EVENT_SCOPE) == EventScope.LOCAL


def test_a_component_fires_through_the_engine_of_the_context() -> None:
    one, other = Hearing(), Hearing()
    engine = Engine(one, other)
    one.fire_event("e", engine.new_context())
    assert (one.heard, other.heard) == (["e"], ["e"])


def test_firing_without_an_engine_is_refused() -> None:
    with pytest.raises(ArgumentInvalid, match="engine"):
        Hearing().fire_event("e", FLContext())


def test_firing_what_is_no_string_is_refused() -> None:
    engine = Engine()
    with pytest.raises(TypeError, match="event_type"):
        Hearing().fire_event(1, engine.new_context())  # type: ignore[arg-type]


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
def test_log_lines_carry_site_and_class(caplog: pytest.LogCaptureFixture, level: str) -> None:
    caplog.set_level(logging.DEBUG)
    ctx = FLContextManager(identity_name="site-1", job_id="job-7").new_context()
    getattr(Hearing(), f"log_{level}")(ctx, "100% done")
    [record] = caplog.records
    assert record.getMessage() == "[site-1, job-7] 100% done"
    assert record.levelname == level.upper()
    assert record.name.endswith("test_component.Hearing")


def test_log_exception_carries_the_traceback(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise LookupError("no such thing")
    except LookupError:
        Hearing().log_exception(FLContext(), "failed")
    assert "failed" in caplog.text
    assert "LookupError: no such thing" in caplog.text


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0, None),
        (1, None),
        (9, "aborted"),
        (101, "exception"),
        (102, "unsafe component"),
        (103, "config error"),
        (104, "infrastructure error"),
        (127, None),
        (137, None),
        (-9, None),
    ],
)
def test_an_exit_code_is_reported_with_the_references_reason(code: int, reason: str | None) -> None:
    assert exit_reason(code) == reason


def test_statuses_have_the_references_numbers_and_texts() -> None:
    texts = {status.value: status.text for status in ClientStatus}
    assert texts == {0: "not started", 1: "starting", 2: "started", 3: "stopped", 4: "exception"}
    assert {code.value for code in ExitCode} == {0, 1, 9, 101, 102, 103, 104, 127}


def test_event_types_and_return_codes_are_the_strings_on_the_wire() -> None:
    assert all(each == f"_{each.name.lower()}" for each in EventType)
    assert all(each == each.name for each in ReturnCode)
