import io
import os
import stat
import struct
import zipfile

import pytest

from engine.archive import Contents, Limits, Unpacked, _Entry, _write, inspect, pack, unpack
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid, BadArchive, BadConfig

CONFIG = "config/config_fed_client.json"


def zipped(*entries, method=zipfile.ZIP_DEFLATED):
    """A zip of (name, content) or (name, content, unix mode); names go in as they are."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content, *mode in entries:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.create_system = 3
            info.external_attr = (mode[0] if mode else stat.S_IFREG | 0o644) << 16
            if name.endswith("/") and not mode:
                info.external_attr = (stat.S_IFDIR | 0o755) << 16
            archive.writestr(info, content, method)
    return out.getvalue()


GOOD = zipped((CONFIG, b'{"command": ["true"]}'), ("train.py", b"print()"), ("data/", b""))

BAD = {
    "is not a zip": (b"PK not a zip at all", "not a zip"),
    "is empty": (b"", "not a zip"),
    "is cut off": (GOOD[:-30], "not a zip"),
    "has nothing in it": (zipped(), "nothing in it"),
    "holds an absolute path": (zipped(("/etc/passwd", b"")), "'/etc/passwd' has an absolute path"),
    "holds a drive's path": (zipped(("C:/x", b"")), "has an absolute path"),
    "holds ..": (zipped(("a/../../x", b"")), "has .. in its path"),
    "holds .. as a folder": (zipped(("../", b"")), "has .. in its path"),
    "holds a backslash path": (zipped(("a\\..\\b", b"")), "has a backslash"),
    "holds a symlink": (zipped(("a", b"/etc", stat.S_IFLNK | 0o777)), "'a' is a symbolic link"),
    "holds a symlink that looks like a folder": (zipped(("a/", b"", stat.S_IFLNK | 0o777)), "symbolic link"),
    "holds a character device": (zipped(("a", b"", stat.S_IFCHR | 0o644)), "is a device"),
    "holds a block device": (zipped(("a", b"", stat.S_IFBLK | 0o644)), "is a device"),
    "holds a pipe": (zipped(("a", b"", stat.S_IFIFO | 0o644)), "a pipe"),
    "holds a socket": (zipped(("a", b"", stat.S_IFSOCK | 0o644)), "a socket"),
    "holds a folder with bytes": (zipped(("a/", b"x")), "a file and a folder at once"),
    "holds a folder that says it is a file": (
        zipped(("a/", b"", stat.S_IFREG)),
        "a file and a folder at once",
    ),
    "holds a file that says it is a folder": (
        zipped(("a", b"", stat.S_IFDIR)),
        "a file and a folder at once",
    ),
    "holds a control character": (zipped(("a\nb", b"")), "control character"),
    "holds a part that is too long": (zipped(("a" * 256, b"")), "too long"),
    "holds a path that is too long": (zipped(("a/" * 600 + "b", b"")), "too long"),
    "is compressed by what we do not read": (zipped(("a", b""), method=zipfile.ZIP_BZIP2), "method 12"),
}

# Two entries that are one file, here or on a file system that folds case or normalises.
COLLISIONS = {
    "twice the same": ("a", "a"),
    "the same after normalisation": ("a/b", "a//./b"),
    "the same but for case": ("Train.py", "train.py"),
    "the same but for a folder's case": ("Custom/a", "custom/b"),
    "the same but for composition": ("caf\u00e9", "cafe\u0301"),
    "the same but for a sharp s": ("stra\u00dfe", "STRASSE"),
    "a file and a folder": ("a", "a/b"),
    "a folder and a file": ("a/b", "a"),
    "an empty folder and a file": ("a/", "a"),
}


@pytest.mark.parametrize(("data", "why"), BAD.values(), ids=BAD)
def test_an_archive_is_refused_before_anything_is_written_if_it(data, why, tmp_path):
    with pytest.raises(BadArchive, match="app_data") as caught:
        inspect(data)
    assert why in caught.value.what
    assert "flightlog deploy" in caught.value.fix
    with pytest.raises(BadArchive):
        unpack(data, tmp_path / "app")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", COLLISIONS.values(), ids=COLLISIONS)
def test_entries_that_collide_are_refused(names):
    with pytest.raises(BadArchive, match=r"collides with|is there twice"):
        inspect(zipped(*((name, b"") for name in names)))


def test_a_name_with_nul_in_it_is_refused_though_the_reader_would_cut_it_there():
    data = zipped(("aXb.py", b"")).replace(b"aXb.py", b"a\0b.py")
    with pytest.raises(BadArchive, match="control character"):
        inspect(data)


def test_an_encrypted_entry_is_refused():
    data = bytearray(zipped(("a", b"x")))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(BadArchive, match="'a' is encrypted"):
        inspect(bytes(data))


@pytest.mark.parametrize("value", [None, "PK", bytearray(GOOD), io.BytesIO(GOOD), 7])
def test_app_data_that_is_not_bytes_is_refused_and_named(value):
    with pytest.raises(ArgumentTypeInvalid, match="app_data must be bytes, not") as caught:
        inspect(value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ArgumentInvalid)


def test_contents_tell_names_size_custom_code_signature_and_config():
    assert inspect(GOOD) == Contents(
        names=(CONFIG, "train.py"), size=28, custom=False, signed=False, config=b'{"command": ["true"]}'
    )
    other = inspect(zipped(("./custom/net.py", b"x"), (".__nvfl_sig.json", b"{}")))
    assert (other.names[0], other.custom, other.signed, other.config) == ("custom/net.py", True, True, None)


def test_an_empty_custom_folder_is_custom_code_as_in_the_reference():
    assert inspect(zipped(("custom/", b""))).custom
    assert not inspect(zipped(("customs/a", b""), ("a/custom/b", b""))).custom


def test_a_config_of_more_than_a_mebibyte_is_refused_unread():
    with pytest.raises(BadConfig, match=r"config_fed_client\.json has more than"):
        inspect(zipped((CONFIG, os.urandom(2**20 + 1))))


# --- bombs -------------------------------------------------------------------------------


def test_a_bomb_by_ratio_is_refused():
    with pytest.raises(BadArchive, match="declares 10485760 bytes unpacked") as caught:
        inspect(zipped(("zeros", bytes(10 * 2**20))))
    assert "zip_ratio" in caught.value.fix


def test_small_files_that_compress_well_are_no_bomb():
    assert inspect(zipped(("zeros", bytes(2**20)))).size == 2**20


def test_a_bomb_by_size_is_refused():
    data = zipped(("a", os.urandom(600)), ("b", os.urandom(600)), method=zipfile.ZIP_STORED)
    with pytest.raises(BadArchive, match="1000 are allowed"):
        inspect(data, Limits(bytes=1000))
    packed = zipped(("a", bytes(5000)))
    with pytest.raises(BadArchive, match="declares 5000 bytes"):
        inspect(packed, Limits(bytes=1000))


def test_a_bomb_by_count_is_refused():
    data = zipped(*((f"f{i}", b"") for i in range(11)))
    assert len(inspect(data, Limits(files=11)).names) == 11
    with pytest.raises(BadArchive, match="more than 10 files") as caught:
        inspect(data, Limits(files=10))
    assert "zip_files" in caught.value.fix


def test_folders_that_names_imply_count_too():
    data = zipped(*(("/".join([f"d{i}", *"abcdefgh"]), b"") for i in range(3)))
    with pytest.raises(BadArchive, match="more than 20 files and folders"):
        inspect(data, Limits(files=20))


def test_a_flood_of_entries_is_refused_before_they_are_read(monkeypatch):
    data = zipped(*((f"f{i}", b"") for i in range(101)))
    monkeypatch.setattr("engine.archive.zipfile.ZipFile", lambda *_: pytest.fail("it was read"))
    with pytest.raises(BadArchive, match="more than 10 entries"):
        inspect(data, Limits(files=10))


def test_a_header_that_lies_about_the_size_lets_no_more_out_than_it_says(tmp_path):
    data = bytearray(zipped(("a", bytes(50 * 2**20))))
    struct.pack_into("<I", data, data.index(b"PK\x03\x04") + 22, 10)
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, 10)
    assert inspect(bytes(data)).size == 10
    with pytest.raises(BadArchive, match="'a' is damaged"):
        unpack(bytes(data), tmp_path / "app")
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_counted_as_they_come_out_whatever_the_reader_believes(tmp_path):
    class Believer:
        def open(self, info):
            return io.BytesIO(bytes(10 * 2**20))

    with pytest.raises(BadArchive, match="more and more bytes at 'a'"):
        _write(Believer(), _Entry("a", False, zipfile.ZipInfo("a")), tmp_path / "a", 2**20)
    assert (tmp_path / "a").stat().st_size <= 2**20


# --- unpacking ---------------------------------------------------------------------------


def test_unpack_writes_files_and_folders_with_their_modes_whatever_the_umask(tmp_path):
    data = zipped(
        ("a/b/run.sh", b"#!/bin/sh\n", stat.S_IFREG | 0o4777),
        ("a/x.txt", b"x", stat.S_IFREG | 0o600),
        ("empty/", b""),
    )
    old = os.umask(0o077)
    try:
        assert unpack(data, tmp_path / "app") == Unpacked(files=2, bytes=11)
    finally:
        os.umask(old)
    modes = {p.relative_to(tmp_path).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert modes == {
        "app": 0o755,
        "app/a": 0o755,
        "app/a/b": 0o755,
        "app/a/b/run.sh": 0o755,
        "app/a/x.txt": 0o644,
        "app/empty": 0o755,
    }


def test_unpack_takes_the_path_of_an_archive(tmp_path):
    (tmp_path / "app.zip").write_bytes(GOOD)
    assert unpack(tmp_path / "app.zip", tmp_path / "app").files == 2
    assert (tmp_path / "app" / "train.py").read_bytes() == b"print()"
    with pytest.raises(BadArchive, match=r"gone.zip cannot be read"):
        unpack(tmp_path / "gone.zip", tmp_path / "other")


def test_unpack_does_not_touch_a_target_that_holds_something(tmp_path):
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(ArgumentInvalid, match=r"target .* is not an empty folder"):
        unpack(GOOD, tmp_path)
    assert (tmp_path / "mine").read_text() == "keep"


def test_unpack_does_not_follow_a_target_that_is_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "app").symlink_to("elsewhere")
    with pytest.raises(ArgumentInvalid):
        unpack(GOOD, tmp_path / "app")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_damaged_entry_is_found_and_nothing_is_left(tmp_path):
    data = bytearray(zipped(("a", b"hello"), ("b", b"world"), method=zipfile.ZIP_STORED))
    data[data.index(b"world")] ^= 1
    with pytest.raises(BadArchive, match="'b' is damaged"):
        unpack(bytes(data), tmp_path / "app")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", range(30))
def test_an_archive_with_flipped_bytes_is_refused_or_read_but_never_a_crash(seed, tmp_path):
    import random

    rng = random.Random(seed)
    for number in range(20):
        data = bytearray(GOOD)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            inspect(bytes(data))
            unpack(bytes(data), tmp_path / str(number))
        except BadArchive:
            assert not (tmp_path / str(number)).exists()


# --- packing -----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    app = tmp_path / "app"
    for name in ("config", "custom/__pycache__", ".git", "empty"):
        (app / name).mkdir(parents=True)
    (app / CONFIG).write_text("{}")
    (app / "custom/net.py").write_text("x = 1")
    (app / "custom/__pycache__/net.pyc").write_bytes(b"x")
    (app / ".git/HEAD").write_text("ref")
    (app / "run.sh").write_text("#!/bin/sh\n")
    (app / "run.sh").chmod(0o700)
    return app


def test_a_packed_folder_comes_out_as_it_went_in(folder, tmp_path):
    out = tmp_path / "out"
    unpack(pack(folder), out)
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*"))
    assert names == ["config", CONFIG, "custom", "custom/net.py", "empty", "run.sh"]
    assert os.access(out / "run.sh", os.X_OK)
    assert stat.S_IMODE((out / CONFIG).stat().st_mode) == 0o644


def test_the_same_files_give_the_same_bytes(folder):
    first = pack(folder)
    os.utime(folder / CONFIG, (1, 1))
    assert pack(folder) == first


def test_packing_a_folder_that_is_not_there_names_it(tmp_path):
    with pytest.raises(BadArchive, match="nowhere does not exist"):
        pack(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(BadArchive, match="file is not a folder"):
        pack(tmp_path / "file")
    (tmp_path / "void").mkdir()
    with pytest.raises(BadArchive, match="is empty"):
        pack(tmp_path / "void")


def test_packing_refuses_links_and_pipes_and_names_them(folder):
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(BadArchive, match="link is a symbolic link"):
        pack(folder)
    (folder / "link").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(BadArchive, match="pipe is a device"):
        pack(folder)
