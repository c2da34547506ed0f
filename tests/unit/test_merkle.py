"""The tree: roots as RFC 6962 has them, proofs that hold, and none that holds for what is not so."""

from __future__ import annotations

import random
from hashlib import sha256
from pathlib import Path

import pytest

from events.merkle import EMPTY, TILE, Tree, canonical, consistent, included, leaf_hash, node_hash

LEAVES = [bytes.fromhex(x) for x in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"
)]  # fmt: skip
#: Roots over the first n of them, as Certificate Transparency publishes them.
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def _tree(count: int, folder: Path | None = None) -> tuple[Tree, list[bytes]]:
    leaves = [leaf_hash(str(i).encode()) for i in range(count)]
    tree = Tree(folder)
    tree.append(leaves)
    return tree, leaves


def _plain(leaves: list[bytes]) -> bytes:
    """The definition itself."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else EMPTY
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return node_hash(_plain(leaves[:k]), _plain(leaves[k:]))


def test_roots_are_those_that_are_published() -> None:
    tree = Tree()
    assert tree.root() == sha256(b"").digest()
    tree.append([leaf_hash(leaf) for leaf in LEAVES])
    assert [tree.root(n + 1).hex() for n in range(8)] == list(ROOTS)


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 511, 70_000])
def test_a_root_is_the_same_from_kept_hashes_as_by_definition(count: int, tmp_path: Path) -> None:
    tree, leaves = _tree(count, tmp_path / "tree")
    assert tree.root() == _plain(leaves)
    assert tree.size == count
    tree.close()


def test_leaves_that_come_one_by_one_or_all_at_once_make_the_same_tree(tmp_path: Path) -> None:
    leaves = [leaf_hash(str(i).encode()) for i in range(3 * TILE + 5)]
    by_one, at_once = Tree(tmp_path / "a"), Tree(tmp_path / "b")
    for leaf in leaves:
        by_one.append([leaf])
    at_once.append(leaves)
    for level in ("0", "8"):
        assert (tmp_path / "a" / level).read_bytes() == (tmp_path / "b" / level).read_bytes()
    by_one.close()
    at_once.close()


def test_every_proof_holds_and_every_changed_one_does_not() -> None:
    dice = random.Random(7)
    tree, leaves = _tree(700)
    for _ in range(300):
        size = dice.randint(1, 700)
        index = dice.randrange(size)
        root, proof = tree.root(size), tree.inclusion(index, size)
        assert included(leaves[index], index, size, proof, root)
        assert not included(leaf_hash(b"other"), index, size, proof, root)
        if size > 1:
            # A node and its sibling may change places only where that is another leaf.
            other = dice.choice([i for i in (index - 1, index + 1) if 0 <= i < size])
            assert not included(leaves[index], other, size, proof, root)
            assert not included(leaves[index], index, size, proof[:-1], root)
            assert not included(leaves[index], index, size, [*proof, proof[0]], root)
        old = dice.randint(1, size)
        steps = tree.consistency(old, size)
        assert consistent(old, tree.root(old), size, root, steps)
        if old < size:
            assert not consistent(old, leaf_hash(b"x"), size, root, steps)
            assert not consistent(old, tree.root(old), size, leaf_hash(b"x"), steps)
            assert not consistent(old, tree.root(old), size, root, steps[:-1])


def test_a_tree_that_was_cut_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    tree, leaves = _tree(1000, tmp_path / "tree")
    tree.cut(513)
    tree.append(leaves[513:])
    assert tree.root() == _plain(leaves)
    tree.close()


def test_there_is_no_proof_of_what_is_not_in_the_tree() -> None:
    tree, _ = _tree(5)
    with pytest.raises(ValueError, match="not in a tree"):
        tree.inclusion(5, 5)
    with pytest.raises(ValueError, match="no consistency"):
        tree.consistency(3, 6)


def test_fields_cannot_flow_into_each_other() -> None:
    assert canonical("1-1", "ab", "c", 1, "{}") != canonical("1-1", "a", "bc", 1, "{}")
    assert canonical("1-1", "t", "s", 12, "3") != canonical("1-1", "t", "s", 1, "23")
