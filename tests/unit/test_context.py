from __future__ import annotations

import threading

import pytest

from engine.constants import FLContextKey, ProcessType, ReservedKey
from engine.context import FLContext, FLContextManager
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid


@pytest.fixture
def manager() -> FLContextManager:
    return FLContextManager(engine="the engine", identity_name="site-1")


def test_a_prop_is_private_and_sticky_unless_said_otherwise(manager: FLContextManager) -> None:
    ctx = manager.new_context()
    assert ctx.set_prop("k", 1)
    assert ctx.get_prop_detail("k") == {"value": 1, "private": True, "sticky": True}


def test_a_missing_prop_gives_the_default(manager: FLContextManager) -> None:
    ctx = manager.new_context()
    assert ctx.get_prop("k") is None
    assert ctx.get_prop("k", 7) == 7
    assert ctx.get_prop_detail("k") is None


def test_none_is_a_value_and_not_a_missing_prop(manager: FLContextManager) -> None:
    ctx = manager.new_context()
    ctx.set_prop("k", None)
    assert ctx.get_prop("k", 7) is None


@pytest.mark.parametrize("key", [1, None, b"k"])
def test_a_key_that_is_no_string_is_a_value_error_and_writes_nothing(manager: FLContextManager, key: object) -> None:
    ctx = manager.new_context()
    before = ctx.get_all_public_props()
    with pytest.raises(ValueError, match="key must be a str"):
        ctx.set_prop(key, 1, private=False)  # type: ignore[arg-type]
    with pytest.raises(ArgumentInvalid):
        ctx.put(key, 1, private=False, sticky=False)  # type: ignore[arg-type]
    assert ctx.get_all_public_props() == before


@pytest.mark.parametrize(("private", "sticky"), [(False, True), (True, False), (False, False)])
def test_a_prop_keeps_its_attributes_and_the_refusal_is_in_the_log(
    manager: FLContextManager, caplog: pytest.LogCaptureFixture, private: bool, sticky: bool
) -> None:
    ctx = manager.new_context()
    ctx.set_prop("k", "old", private=True, sticky=True)
    assert not ctx.set_prop("k", "new", private=private, sticky=sticky)
    assert ctx.get_prop("k") == "old"
    assert "cannot become" in caplog.text


def test_the_attributes_of_a_sticky_prop_hold_in_contexts_made_before_it(manager: FLContextManager) -> None:
    earlier = manager.new_context()
    manager.new_context().set_prop("k", 1)
    assert not earlier.set_prop("k", 2, sticky=False)


def test_a_prop_can_be_set_again_with_the_same_attributes(manager: FLContextManager) -> None:
    ctx = manager.new_context()
    assert ctx.set_prop("k", 1, private=False, sticky=False)
    assert ctx.set_prop("k", 2, private=False, sticky=False)
    assert ctx.get_prop("k") == 2


def test_a_sticky_value_is_seen_by_all_contexts_older_and_newer(manager: FLContextManager) -> None:
    older, writer = manager.new_context(), manager.new_context()
    writer.set_prop("k", 1)
    newer = manager.new_context()
    writer.set_prop("k", 2)
    assert [ctx.get_prop("k") for ctx in (older, writer, newer)] == [2, 2, 2]


def test_a_non_sticky_value_is_seen_by_its_own_context_only(manager: FLContextManager) -> None:
    ctx = manager.new_context()
    ctx.set_prop("k", 1, sticky=False)
    assert manager.new_context().get_prop("k") is None


def test_managers_share_nothing() -> None:
    one, other = FLContextManager(), FLContextManager()
    one.new_context().set_prop("k", 1)
    assert other.new_context().get_prop("k") is None


def test_a_context_without_a_manager_keeps_sticky_props_to_itself() -> None:
    ctx = FLContext()
    assert ctx.set_prop("k", 1)
    assert ctx.get_prop("k") == 1
    assert FLContext().get_prop("k") is None


def test_put_changes_attributes(manager: FLContextManager) -> None:
    ctx = manager.new_context()
    ctx.set_prop("k", 1, private=True, sticky=False)
    ctx.put("k", 2, private=False, sticky=True)
    assert manager.new_context().get_prop_detail("k") == {"value": 2, "private": False, "sticky": True}


def test_remove_prop_removes_a_sticky_value_everywhere(manager: FLContextManager) -> None:
    ctx = manager.new_context()
    ctx.set_prop("k", 1)
    other = manager.new_context()
    assert ctx.remove_prop("k")
    assert other.get_prop("k") is None
    assert manager.new_context().get_prop("k") is None
    assert other.set_prop("k", 2, private=False), "a removed prop may come back with other attributes"


def test_remove_prop_spares_reserved_names_unless_forced(
    manager: FLContextManager, caplog: pytest.LogCaptureFixture
) -> None:
    ctx = manager.new_context()
    assert not ctx.remove_prop(ReservedKey.ENGINE)
    assert ctx.get_engine() == "the engine"
    assert "reserved" in caplog.text
    assert ctx.remove_prop(ReservedKey.ENGINE, force_removal=True)
    assert ctx.get_engine() is None


def test_removing_what_is_not_there_is_no_error(manager: FLContextManager) -> None:
    assert manager.new_context().remove_prop("k")


def test_public_props_are_the_public_ones_sticky_or_not(manager: FLContextManager) -> None:
    ctx = manager.new_context()
    ctx.set_prop("secret", 1)
    ctx.set_prop("mine", 2, private=False, sticky=False)
    manager.new_context().set_prop("ours", 3, private=False, sticky=True)
    props = ctx.get_all_public_props()
    assert props == {ReservedKey.RUN_NUM: "", ReservedKey.IDENTITY_NAME: "site-1", "mine": 2, "ours": 3}


def test_set_public_props_keeps_private_props_and_replaces_public_ones() -> None:
    ctx = FLContext()
    ctx.set_prop("secret", 1)
    ctx.set_prop("old", 2, private=False, sticky=False)
    ctx.set_public_props({"new": 3})
    assert ctx.get_prop("secret") == 1
    assert ctx.get_all_public_props() == {"new": 3}
    assert ctx.get_prop_detail("new") == {"value": 3, "private": False, "sticky": False}


def test_set_public_props_does_not_let_a_peer_replace_what_is_private(
    manager: FLContextManager, caplog: pytest.LogCaptureFixture
) -> None:
    ctx = manager.new_context()
    ctx.set_public_props({ReservedKey.ENGINE: "the peer's", "k": 1})
    assert ctx.get_engine() == "the engine"
    assert ctx.get_prop("k") == 1
    assert "private" in caplog.text


def test_l9_set_public_props_changes_nothing_on_bad_input() -> None:
    ctx = FLContext()
    ctx.set_prop("k", 1, private=False)
    with pytest.raises(ArgumentInvalid):
        ctx.set_public_props({"new": 2, 3: 4})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="mapping"):
        ctx.set_public_props(["new"])  # type: ignore[arg-type]
    assert ctx.get_all_public_props() == {"k": 1}


def test_the_peer_context_is_kept_and_not_shown_to_peers(manager: FLContextManager) -> None:
    ctx, peer = manager.new_context(), FLContext()
    assert ctx.get_peer_context() is None
    ctx.set_peer_context(peer)
    assert ctx.get_peer_context() is peer
    assert FLContextKey.PEER_CONTEXT not in ctx.get_all_public_props()
    assert manager.new_context().get_peer_context() is None


def test_a_peer_context_must_be_a_context() -> None:
    with pytest.raises(ArgumentTypeInvalid):
        FLContext().set_peer_context({"k": 1})  # type: ignore[arg-type]


def test_a_clone_goes_its_own_way_but_shares_the_manager(manager: FLContextManager) -> None:
    ctx = manager.new_context()
    ctx.set_prop("k", 1, sticky=False)
    clone = ctx.clone()
    clone.set_prop("k", 2, sticky=False)
    clone.set_prop("ours", 3)
    assert (ctx.get_prop("k"), clone.get_prop("k"), ctx.get_prop("ours")) == (1, 2, 3)
    assert clone.get_engine() == "the engine"


def test_a_new_context_knows_engine_site_and_job() -> None:
    manager = FLContextManager(
        engine="the engine",
        identity_name="site-1",
        job_id="job-1",
        public_stickers={ReservedKey.FQSN: "site-1"},
        private_stickers={FLContextKey.PROCESS_TYPE: ProcessType.CLIENT_PARENT},
    )
    ctx = manager.new_context()
    assert ctx.get_engine() == "the engine"
    assert ctx.get_identity_name() == "site-1"
    assert ctx.get_job_id() == "job-1"
    assert ctx.get_process_type() == "CP"
    assert ctx.get_prop(ReservedKey.MANAGER) is manager
    assert ctx.get_prop_detail(ReservedKey.FQSN) == {"value": "site-1", "private": False, "sticky": True}
    assert FLContextKey.PROCESS_TYPE not in ctx.get_all_public_props()


def test_a_client_parents_context_has_the_empty_job_id_and_no_abort_signal(manager: FLContextManager) -> None:
    ctx = manager.new_context()
    assert ctx.get_job_id() == ""
    assert ctx.get_run_abort_signal() is None


def test_a_bare_context_knows_nothing() -> None:
    ctx = FLContext()
    assert (ctx.get_engine(), ctx.get_job_id(), ctx.get_process_type()) == (None, None, None)
    assert ctx.get_identity_name() == ""


def test_a_context_stays_with_the_job_it_was_made_for(manager: FLContextManager) -> None:
    ctx = manager.new_context()
    manager.new_context().set_prop(ReservedKey.RUN_NUM, "job-2", private=False, sticky=True)
    assert ctx.get_job_id() == ""
    assert ctx.get_prop(ReservedKey.RUN_NUM) == "job-2"
    assert manager.new_context().get_job_id() == "job-2"


def test_a_context_can_be_used_in_a_with_block_and_after_it(manager: FLContextManager) -> None:
    with manager.new_context() as ctx:
        ctx.set_prop("k", 1)
    assert ctx.get_prop("k") == 1
    with pytest.raises(KeyError), manager.new_context():
        raise KeyError("the exit swallows nothing")


def test_a_sticker_cannot_be_public_and_private_at_once() -> None:
    with pytest.raises(ArgumentInvalid, match="k"):
        FLContextManager(public_stickers={"k": 1}, private_stickers={"k": 2})


def test_threads_may_use_contexts_of_one_manager_at_once(manager: FLContextManager) -> None:
    shared = manager.new_context()

    def use(number: int) -> None:
        ctx = manager.new_context()
        for turn in range(200):
            ctx.set_prop(f"{number}-{turn}", turn, private=False)
            shared.get_all_public_props()
            shared.clone().remove_prop(f"{number}-{turn - 1}")

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = {key for key in shared.get_all_public_props() if not key.startswith("__")}
    assert left == {f"{number}-199" for number in range(4)}
