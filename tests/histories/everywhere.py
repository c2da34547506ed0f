"""Replays all golden histories under ten hash seeds, on every Python of this machine that can run Flightlog.

``python -P -m tests.histories.everywhere`` makes an environment for each (``.venv-3.12``, ...) from the runtime lock,
and says which Pythons there were. One result for all, or it fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEEDS = range(10)
OLDEST = (3, 11)


def pythons() -> dict[str, Path]:
    """Version (3.12) -> interpreter, of those that start and are new enough; the running one among them."""
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}": Path(sys.executable)}
    folders = [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep)]
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    folders += sorted(root.glob("*/bin")) if root.is_dir() else []
    for folder in folders:
        for path in sorted(folder.glob("python3.*")) if folder.is_dir() else []:
            number = re.fullmatch(r"python3\.(\d+)", path.name)
            if number is None or (3, int(number[1])) < OLDEST or f"3.{number[1]}" in found:
                continue
            asked = subprocess.run([path, "-c", "import ssl, venv"], capture_output=True, check=False)
            if asked.returncode == 0:
                found[f"3.{number[1]}"] = path
    return dict(sorted(found.items()))


def environment(version: str, python: Path) -> Path:
    """An interpreter with Flightlog's runtime; the running one has it."""
    if python == Path(sys.executable):
        return python
    folder = ROOT / f".venv-{version}"
    ready = folder / "ready"
    lock = ROOT / "requirements-runtime.lock"
    if not ready.exists() or ready.read_bytes() != lock.read_bytes():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "-r", lock], check=True)
        ready.write_bytes(lock.read_bytes())
    return folder / "bin" / "python"


def main() -> int:
    """Everything, everywhere; 1 where anything differs."""
    releases = sorted(path for path in (ROOT / "tests" / "histories").iterdir() if re.match(r"\d", path.name))
    results: dict[str, set[str]] = {release.name: set() for release in releases}
    failed = False
    for version, python in pythons().items():
        interpreter = environment(version, python)
        for release in releases:
            for seed in SEEDS:
                done = subprocess.run(
                    [interpreter, "-P", "-c", _CODE, str(ROOT), str(release)],
                    env={**os.environ, "PYTHONHASHSEED": str(seed)},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    failed = True
                    print(f"Python {version}, {release.name}, hash seed {seed}:\n{done.stdout}{done.stderr}")
                else:
                    results[release.name].add(done.stdout.split()[-1])
        print(f"Python {version} ({python}): {len(SEEDS)} hash seeds")
    for name, digests in results.items():
        print(f"{name}: {len(digests)} result: {', '.join(sorted(digests))[:80]}")
        failed |= len(digests) != 1
    return int(failed)


#: Our own packages first, wherever the interpreter has its own; by path, since it has nothing that tests need.
_CODE = (
    "import runpy, sys; root = sys.argv[1]; sys.path.insert(0, root); sys.argv = sys.argv[1:];"
    "runpy.run_path(root + '/tests/histories/replay.py', run_name='__main__')"
)

if __name__ == "__main__":
    sys.exit(main())
