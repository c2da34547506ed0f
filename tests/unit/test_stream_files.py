"""Files and logs, end against end in memory: what is written where, what is skipped, what is refused."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.constants import ReturnCode
from engine.context import FLContext
from engine.shareable import Shareable, make_reply
from engine.streaming import StreamContext, StreamContextKey
from engine.streaming.files import KEPT, FileConsumer, FileFactory, FileKey, FileProducer, safe_name
from engine.streaming.logs import LogFactory, LogKey, LogProducer

CTX = FLContext()
TX = "0" * 31 + "1"
LATER = "0" * 31 + "2"


def context(tx: str = TX, file_id: str = "f" * 32, name: str = "model.bin", **more: Any) -> StreamContext:
    return StreamContext(
        {
            StreamContextKey.TX_ID: tx,
            StreamContextKey.SENDER: "site-1",
            FileKey.ID: file_id,
            FileKey.NAME: name,
            **more,
        }
    )


_open: list[Any] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """What tests leave in the middle is closed after them."""
    yield
    for one in _open:
        getattr(one, "_file", None) and one._file.close()
    _open.clear()


class Through:
    """A file on its way from a producer to a consumer, an object at a time."""

    def __init__(self, source: Path, factory: FileFactory, ctx: StreamContext, chunk: int = 10) -> None:
        self.producer = FileProducer(source, chunk=chunk)
        self.consumer = factory.get_consumer(ctx, CTX)
        _open.extend((self.producer, self.consumer))
        self.factory, self.ctx = factory, ctx
        self.count = 0
        self.result: Any = None

    def objects(self, most: int = 10**6) -> Any:
        """Go on, for so many objects; what the producer made of it in the end."""
        for _ in range(most):
            obj, _ = self.producer.produce(self.ctx, CTX)
            if obj is None:
                return self.result
            self.count += 1
            more, reply = self.consumer.consume(obj, self.ctx, CTX)
            self.result = self.producer.process_replies({"server": reply or make_reply(ReturnCode.OK)}, self.ctx, CTX)
            if not more or self.result is not None:
                self.end(ReturnCode.OK)
                return self.result
        return None

    def end(self, rc: str) -> None:
        self.ctx[StreamContextKey.RC] = rc
        self.consumer.finalize(self.ctx, CTX)
        self.factory.return_consumer(self.consumer, self.ctx, CTX)
        self.producer.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(95))
    return path


@pytest.fixture
def factory(tmp_path: Path) -> FileFactory:
    return FileFactory(tmp_path / "in")


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 95, 100])
def test_a_file_of_any_size_comes_as_it_was(tmp_path: Path, factory: FileFactory, size: int) -> None:
    source = tmp_path / "model.bin"
    source.write_bytes(os.urandom(size))
    through = Through(source, factory, context(**{FileKey.SIZE: size}))
    assert through.objects() == {"server": "model.bin"}
    assert (factory.folder / "site-1" / "model.bin").read_bytes() == source.read_bytes()
    assert not list((factory.folder / "site-1" / ".incoming").glob("*.part"))


def test_nothing_is_at_its_place_before_it_is_whole(source: Path, factory: FileFactory) -> None:
    through = Through(source, factory, context())
    through.objects(5)
    assert not (factory.folder / "site-1" / "model.bin").exists()
    through.objects()
    assert (factory.folder / "site-1" / "model.bin").exists()


def test_a_second_try_goes_on_where_the_first_was_broken_off(source: Path, factory: FileFactory) -> None:
    first = Through(source, factory, context())
    first.objects(6)
    first.end("PRODUCER_LOST")
    second = Through(source, factory, context(LATER))
    assert second.objects() == {"server": "model.bin"}
    assert second.count == 1 + 5  # the question, and 45 bytes of 95
    assert (factory.folder / "site-1" / "model.bin").read_bytes() == source.read_bytes()


def test_another_content_begins_anew(source: Path, factory: FileFactory) -> None:
    first = Through(source, factory, context())
    first.objects(6)
    first.end("PRODUCER_LOST")
    other = Through(source, factory, context(LATER, "e" * 32))
    other.objects()
    assert other.count == 1 + 10


def test_a_file_that_was_whole_already_is_not_sent_again(source: Path, factory: FileFactory) -> None:
    Through(source, factory, context()).objects()
    again = Through(source, factory, context(LATER))
    assert again.objects() == {"server": "model.bin"}
    assert again.count == 2
    assert [p.name for p in (factory.folder / "site-1").glob("*.bin")] == ["model.bin"]


def test_a_consumer_of_a_new_process_says_how_much_is_safe(
    source: Path, factory: FileFactory, tmp_path: Path
) -> None:
    ctx = context(**{FileKey.SIZE: 95})
    through = Through(source, factory, ctx)
    through.objects(5)  # the question and 40 bytes
    consumer = FileFactory(factory.folder).get_consumer(ctx, CTX)
    _open.append(consumer)
    assert consumer.resume(ctx, CTX) == 5
    through.consumer = consumer
    assert through.objects() == {"server": "model.bin"}
    assert (factory.folder / "site-1" / "model.bin").read_bytes() == source.read_bytes()


def test_one_that_died_between_the_rename_and_its_answer_gives_the_answer_again(
    source: Path, factory: FileFactory
) -> None:
    ctx = context()
    through = Through(source, factory, ctx)
    through.objects(10)
    last, _ = through.producer.produce(ctx, CTX)
    assert last is not None
    through.consumer.consume(last, ctx, CTX)
    consumer = FileFactory(factory.folder).get_consumer(ctx, CTX)
    _open.append(consumer)
    assert consumer.resume(ctx, CTX) == 10
    more, reply = consumer.consume(last, ctx, CTX)
    assert (more, reply and reply.get_header(FileKey.LOCATION)) == (False, "model.bin")


@pytest.mark.parametrize("size", [1, 10, 95, 100])
def test_one_that_died_as_it_finished_gets_the_last_object_again(
    tmp_path: Path, factory: FileFactory, size: int
) -> None:
    source = tmp_path / "model.bin"
    source.write_bytes(os.urandom(size))
    ctx = context(**{FileKey.SIZE: size})
    through = Through(source, factory, ctx)
    through.objects(1 + (size - 1) // 10)  # all but the last
    last, _ = through.producer.produce(ctx, CTX)
    assert last is not None
    through.consumer._write(last[FileKey.DATA], last[FileKey.OFFSET])  # type: ignore[attr-defined]
    consumer = FileFactory(factory.folder).get_consumer(ctx, CTX)
    _open.append(consumer)
    assert consumer.resume(ctx, CTX) == 1 + (size - 1) // 10
    assert consumer.consume(last, ctx, CTX)[0] is False
    assert (factory.folder / "site-1" / "model.bin").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    "body",
    [
        {FileKey.DATA: 700_000_000, FileKey.OFFSET: 0},
        {FileKey.DATA: "text", FileKey.OFFSET: 0},
        {FileKey.DATA: b"x", FileKey.OFFSET: -1},
        {FileKey.DATA: b"x", FileKey.OFFSET: True},
        {FileKey.DATA: b"x" * 6, FileKey.OFFSET: 0},
        {FileKey.OFFSET: 0},
    ],
)
def test_an_object_that_is_no_part_of_the_file_writes_nothing(factory: FileFactory, body: dict[str, Any]) -> None:
    ctx = context(**{FileKey.SIZE: 5})
    consumer = factory.get_consumer(ctx, CTX)
    _open.append(consumer)
    with pytest.raises(ValueError, match=r"must be bytes|and more come"):
        consumer.consume(Shareable(body), ctx, CTX)
    assert all(path.stat().st_size == 0 for path in factory.folder.rglob("*.part"))


def test_what_is_there_with_another_content_is_no_file_that_came(source: Path, factory: FileFactory) -> None:
    Through(source, factory, context()).objects()
    (factory.folder / "site-1" / "model.bin").write_bytes(b"tampered")
    again = Through(source, factory, context(LATER))
    with pytest.raises(ValueError, match="with another content"):
        again.objects()
    again.end(ReturnCode.EXECUTION_EXCEPTION)
    third = Through(source, factory, context("0" * 31 + "3"))
    assert third.objects() == {"server": "model.ffffffff.bin"}
    assert (factory.folder / "site-1" / "model.ffffffff.bin").read_bytes() == source.read_bytes()


def test_a_file_that_changes_while_it_is_sent_is_not_sent_as_if_it_had_not(
    source: Path, factory: FileFactory
) -> None:
    through = Through(source, factory, context())
    through.objects(5)
    with source.open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="changed while it was sent"):
        through.objects()


def test_a_receiver_that_does_not_say_where_the_file_is_has_it_all_the_same(source: Path) -> None:
    producer = FileProducer(source, chunk=10)
    _open.append(producer)
    result = None
    while result is None:
        obj, _ = producer.produce(context(), CTX)
        assert obj is not None
        result = producer.process_replies({"server": make_reply(ReturnCode.OK)}, context(), CTX)
    assert result == {"server": ""}


def test_of_two_streams_of_one_file_the_later_has_it(source: Path, factory: FileFactory) -> None:
    early, late = Through(source, factory, context()), None
    early.objects(5)
    late = Through(source, factory, context(LATER))
    with pytest.raises(ValueError, match="in another stream by now"):
        early.objects(1)
    with pytest.raises(ValueError, match="began later"):
        factory.get_consumer(context(), CTX)
    early.end(ReturnCode.EXECUTION_EXCEPTION)
    assert late.objects() == {"server": "model.bin"}
    assert (factory.folder / "site-1" / "model.bin").read_bytes() == source.read_bytes()


def test_a_file_that_is_not_the_one_that_was_sent_is_refused_and_nothing_stays(
    source: Path, factory: FileFactory
) -> None:
    through = Through(source, factory, context())
    through.objects(10)
    last, _ = through.producer.produce(through.ctx, CTX)
    assert last is not None
    last[FileKey.SHA256] = "0" * 64
    with pytest.raises(ValueError, match="its digest differs"):
        through.consumer.consume(last, through.ctx, CTX)
    through.end(ReturnCode.EXECUTION_EXCEPTION)
    assert not list((factory.folder / "site-1" / ".incoming").iterdir())
    assert not (factory.folder / "site-1" / "model.bin").exists()


def test_a_size_that_is_not_the_one_that_was_said_is_refused(source: Path, factory: FileFactory) -> None:
    with pytest.raises(ValueError, match="the file has 95 bytes, and was to have 96"):
        Through(source, factory, context(**{FileKey.SIZE: 96})).objects()


def test_a_gap_in_a_file_is_refused(source: Path, factory: FileFactory) -> None:
    consumer = factory.get_consumer(context(), CTX)
    _open.append(consumer)
    with pytest.raises(ValueError, match="has a gap"):
        consumer.consume(Shareable({FileKey.DATA: b"x", FileKey.OFFSET: 7}), context(), CTX)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("../../etc/passwd", "passwd"),
        ("/etc/shadow", "shadow"),
        ("..\\..\\boot.ini", "boot.ini"),
        (".bashrc", "bashrc"),
        ("..", "f" * 32),
        ("", "f" * 32),
        ("a\nb;rm -rf $HOME", "a_b_rm_-rf__HOME"),
        ("modèle.bin", "modèle.bin"),
        ("x" * 300, "x" * 200),
        ("x" * 300 + ".bin", "x" * 196 + ".bin"),
        ("語" * 100 + ".bin", "語" * 65 + ".bin"),
    ],
)
def test_a_name_leads_nowhere_else(given: str, name: str) -> None:
    assert safe_name(given, "f" * 32) == name


def test_a_name_that_is_taken_leaves_both(source: Path, factory: FileFactory) -> None:
    Through(source, factory, context()).objects()
    other = Through(source, factory, context(LATER, "e" * 32))
    assert other.objects() == {"server": "model.eeeeeeee.bin"}
    assert len(list((factory.folder / "site-1").glob("model*"))) == 2


@pytest.mark.parametrize("file_id", ["../../x", "", None, 7, "F" * 32])
def test_an_id_that_is_none_leads_nowhere_else(source: Path, factory: FileFactory, file_id: Any) -> None:
    ctx = context(file_id=file_id)
    part = FileConsumer.part_of(factory.folder / "site-1", ctx)
    assert (part.parent, part.name) == (factory.folder / "site-1" / ".incoming", f"{TX}.part")


def test_parts_that_nobody_completes_are_removed(source: Path, factory: FileFactory) -> None:
    through = Through(source, factory, context())
    through.objects(5)
    through.end("PRODUCER_LOST")
    (part,) = (factory.folder / "site-1" / ".incoming").glob("*.part")
    os.utime(part, (0, time.time() - KEPT - 1))
    FileFactory(factory.folder)
    assert not part.exists()


def test_a_disk_that_is_full_is_said_so_and_nothing_stays(source: Path, factory: FileFactory) -> None:
    through = Through(source, factory, context())
    through.objects(3)
    consumer: Any = through.consumer
    consumer._file.close()
    consumer._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - the kernel's own full disk
    with pytest.raises(OSError, match="No space left"):
        through.objects(1)
    through.end(ReturnCode.EXECUTION_EXCEPTION)
    assert not list((factory.folder / "site-1" / ".incoming").glob("*"))


# -- logs -----------------------------------------------------------------------------------------------------


class Log:
    """A log that grows, and its copy."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.txt"
        self.factory = LogFactory(folder / "logs")
        self.over, self.stop = threading.Event(), threading.Event()
        self.begin()

    def begin(self) -> None:
        self.ctx = context(name="log.txt", **{LogKey.JOB: "job-1", LogKey.ATTEMPT: 2})
        self.producer = LogProducer(self.path, self.over, self.stop)
        self.consumer = self.factory.get_consumer(self.ctx, CTX)
        _open.append(self.producer)

    def write(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text)

    def objects(self, most: int) -> int:
        """So many objects; how many came before the end."""
        for number in range(most):
            obj, _ = self.producer.produce(self.ctx, CTX)
            if obj is None:
                return number
            _, reply = self.consumer.consume(obj, self.ctx, CTX)
            self.producer.process_replies({"server": reply or make_reply(ReturnCode.OK)}, self.ctx, CTX)
        return most

    def copy(self, part: int = 0) -> str:
        name = "2-log.txt" + (f".{part}" if part else "")
        return (self.factory.folder / "site-1" / "job-1" / name).read_text()


@pytest.fixture
def growing(tmp_path: Path) -> Log:
    return Log(tmp_path)


def test_a_log_is_sent_as_it_grows_and_to_its_end(growing: Log) -> None:
    growing.write("epoch 1\n")
    assert growing.objects(2) == 2
    assert growing.copy() == "epoch 1\n"
    growing.write("epoch 2\n")
    growing.objects(1)
    assert growing.copy() == "epoch 1\nepoch 2\n"
    growing.write("last words\n")
    growing.over.set()
    assert growing.objects(10) == 1
    assert growing.copy() == growing.path.read_text()


def test_a_log_that_is_not_there_yet_is_waited_for(growing: Log) -> None:
    threading.Timer(0.3, growing.write, ["late\n"]).start()
    growing.objects(2)
    assert growing.copy() == "late\n"


@pytest.mark.parametrize("how", ["renamed", "cut"])
def test_a_log_that_is_rotated_goes_on_as_the_next_part(growing: Log, how: str) -> None:
    growing.write("before the rotation\n")
    growing.objects(2)
    if how == "renamed":
        growing.path.rename(growing.path.with_suffix(".1"))
    else:
        os.truncate(growing.path, 0)
    growing.write("after\n")
    growing.over.set()
    growing.objects(10)
    assert (growing.copy(), growing.copy(1)) == ("before the rotation\n", "after\n")


def test_a_new_engine_goes_on_behind_what_the_server_has(growing: Log) -> None:
    growing.write("a" * 100_000)
    growing.objects(2)  # 64 KiB of it
    growing.producer.close()
    growing.begin()
    growing.over.set()
    assert growing.objects(10) == 2
    assert growing.copy() == "a" * 100_000


def test_a_log_that_is_broken_off_ends_in_the_middle(growing: Log) -> None:
    growing.write("a" * 100_000)
    growing.objects(2)
    growing.stop.set()
    assert growing.objects(10) == 0
