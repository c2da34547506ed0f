"""The keeper of one app: two processes, so that either may die and the exit code is still seen.

Run by file path (``python -I -S keeper.py FOLDER READY_FD [GRANT_FD]``): standard library only, no Redis, ~20 ms.
With ``--probe-network`` instead, it only tells whether an app can be taken off the network here.

The *outer* process forks the *inner* one, and that is the app's parent. Both are child
subreapers: when the inner one dies the app becomes the outer's child, who goes on waiting.
Holding the ``flock`` on FOLDER/lock is what "alive" means; it goes with the last of the two.

FOLDER/spec.bin        in:  (marshal) argv, env, cwd, log, run, marker, network, grace, start (position of the intent)
FOLDER/../abort        in:  an order to end the app, if one comes
FOLDER/identity.json   out: who runs (boot, pid namespace, pids with start times), before the app is let go
FOLDER/exit.json       out: how it ended

Order at the start: lock, fork, identity on disk, look for an order, then the go byte. So nothing
runs that nobody could find again, and an order that was written before is never missed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import marshal
import os
import select
import signal
import stat
import sys
import time

TYPE_CHECKING = False  # the real one would cost an import of typing
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Spec = dict[str, Any]

PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
AF_INET, SOCK_DGRAM = 2, 2
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
#: What a machine may have set such that it has no namespace for us.
LIMITS = (
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
    "user.max_user_namespaces",
    "user.max_net_namespaces",
)
LOST = ("lost", None)  # the app is no child of ours any more
RC_FILE = "_process_rc.txt"
LOOK_EVERY = 1.0  # seconds; signals wake us earlier
LEFTOVER_GRACE = 1.0  # for what an app that ended by itself leaves running


def main(folder: str, ready_fd: int, grant_fd: int) -> int:
    """Keep one app. Exit status 0: the end is on disk; 3: another keeper is alive.

    ``grant_fd`` (-1: none) is a pipe that the app alone is to read: it becomes its descriptor 3.
    """
    os.set_inheritable(ready_fd, False)
    os.chdir(folder)
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(ready_fd, "BUSY")
        return 3
    subreaper()
    with open("spec.bin", "rb") as file:
        spec: Spec = marshal.load(file)  # noqa: S302 - from the launcher, in a folder of ours; json costs 8 ms
    outer = [os.getpid(), start_ticks(os.getpid())]
    wake = listen()
    pid = os.fork()
    if pid == 0:
        subreaper()
        wake = listen()
        keep(spec, launch(spec, outer, ready_fd, grant_fd), wake, "inner")
        os._exit(0)
    os.close(ready_fd)
    forget(grant_fd)
    return stand_by(spec, pid, wake)


def launch(spec: Spec, outer: list[int], ready_fd: int, grant_fd: int) -> Spec:
    """Fork the app, write down who it is, look for an order, let it go; end here where it may not run."""
    go_read, go_write = os.pipe()
    failed_read, failed_write = os.pipe()
    app = os.fork()
    if app == 0:
        os.close(go_write)
        os.close(failed_read)
        become(spec, go_read, failed_write, grant_fd)
    forget(grant_fd)
    os.close(go_read)
    os.close(failed_write)
    inner = [os.getpid(), start_ticks(os.getpid())]
    identity = {
        "boot_id": boot_id(),
        "pid_namespace": os.readlink("/proc/self/ns/pid"),
        "outer": outer,
        "inner": inner,
        "pid": app,
        "start_ticks": start_ticks(app),
        "spawned": time.clock_gettime(time.CLOCK_BOOTTIME),
    }
    write("identity.json", identity)
    if ordered(spec):
        os.close(go_write)
        os.waitpid(app, 0)
        end({"ran": False, "why": "aborted", "error": "aborted before it was let go"})
        say(ready_fd, "ABORTED")
        os._exit(0)
    os.write(go_write, b"g")
    os.close(go_write)
    failure = os.read(failed_read, 4096).decode()
    os.close(failed_read)
    if failure:
        os.waitpid(app, 0)
        why, _, text = failure.partition(" ")
        end({"ran": False, "why": why, "error": text})
        say(ready_fd, "FAILED")
        os._exit(0)
    say(ready_fd, "SPAWNED")
    os.close(ready_fd)
    return identity


def become(spec: Spec, go: int, failed: int, grant: int) -> NoReturn:
    """In the child: wait for the go byte, then turn into the app."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for number in (
        signal.SIGUSR1,
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGCHLD,
        signal.SIGPIPE,
    ):
        signal.signal(number, signal.SIG_DFL)
    if os.read(go, 1) != b"g":
        os._exit(0)
    try:
        if spec["network"] != "open":
            isolate()
    except OSError as error:
        os.write(failed, f"NETWORK_ISOLATION_UNAVAILABLE {error.strerror}".encode())
        os._exit(127)
    try:
        os.chdir(spec["cwd"])
        if grant >= 0:
            failed = fcntl.fcntl(failed, fcntl.F_DUPFD_CLOEXEC, 10)  # out of the way of 3
            kept = fcntl.fcntl(grant, fcntl.F_DUPFD_CLOEXEC, 10)
            os.close(grant)
            os.dup2(kept, 3, inheritable=True)
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606 - a list, as configured
    except OSError as error:
        why = "COMMAND_NOT_FOUND" if error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC) else "EXEC_FAILED"
        os.write(failed, f"{why} {spec['argv'][0]}: {error.strerror}".encode())
    os._exit(127)


def isolate() -> None:
    """Take this process off the network: a namespace of its own, with nothing in it but a loopback.

    Raises:
        OSError: the machine does not allow it; its text says what was tried, and what the limits are.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    tried = "unshare(CLONE_NEWNET)"
    try:
        try:
            called(libc.unshare(CLONE_NEWNET))
        except PermissionError:
            # Not ours to make here, but in a user namespace of our own it is. We stay who we are in there, and
            # the rights that come with it reach nothing outside of it.
            tried = "unshare(CLONE_NEWUSER|CLONE_NEWNET)"
            called(libc.unshare(CLONE_NEWUSER | CLONE_NEWNET))
            tried = "the map of the user namespace"
            maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
            for name, text in maps.items():
                with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                    file.write(text)
        tried = "the loopback"
        # Many a program talks to itself by 127.0.0.1. The socket module would cost more than all the rest.
        fd = called(libc.socket(AF_INET, SOCK_DGRAM | os.O_CLOEXEC, 0))
        fcntl.ioctl(fd, SIOCSIFFLAGS, b"lo".ljust(16, b"\0") + IFF_UP.to_bytes(2, sys.byteorder) + bytes(22))
        os.close(fd)
    except OSError as error:
        limits = ", ".join(filter(None, map(limit, LIMITS)))
        raise OSError(error.errno, f"no network namespace: {tried}: {error.strerror} ({limits})") from error


def called(result: int) -> int:
    """What a C function gave back, if it was no error."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def limit(name: str) -> str:
    """A limit of the kernel with its value; empty where this kernel knows none of that name."""
    try:
        with open("/proc/sys/" + name.replace(".", "/"), encoding="ascii") as file:
            return f"{name}={file.read().strip()}"
    except OSError:
        return ""


def probe() -> int:
    """Try ``isolate`` on this very process, and print what stands against it; the exit status."""
    try:
        isolate()
    except OSError as error:
        print(error.strerror)
        return 1
    return 0


def stand_by(spec: Spec, inner: int, wake: int) -> int:
    """The outer process: wait for the inner one; where it dies before the end is written, take over."""
    while True:
        pid, status = wait_for(inner, wake)
        if pid == inner:
            break
    if os.path.exists("exit.json"):
        return 0
    identity = read("identity.json")
    if not identity:
        end(
            {
                "ran": False,
                "why": "KEEPER_DIED",
                "error": f"the keeper ended before the spawn (status {status})",
            }
        )
        return 0
    keep(spec, identity, wake, "outer")
    return 0


def wait_for(pid: int, wake: int) -> tuple[int, int]:
    """Wait until ``pid``, our child, is gone; other children are reaped. Wakes at least every LOOK_EVERY."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if done == pid:
        return pid, status
    doze(wake, LOOK_EVERY)
    return 0, 0


def keep(spec: Spec, identity: Spec, wake: int, by: str) -> None:
    """Wait for the app's end, carry out an order, clear what is left, write the end down."""
    app = identity["pid"]
    asked_at = None
    grace = spec["grace"]
    killed = 0
    while True:
        ended = peek(app)
        if ended is not None:
            break
        if asked_at is None and ordered(spec):
            grace = order_of().get("grace", grace)
            asked_at = time.monotonic()
            write("signalled.json", {"signal": "SIGTERM"})
            for pid in tree(spec, identity):
                hit(pid, signal.SIGTERM)
        elif asked_at is not None and time.monotonic() - asked_at >= grace:
            killed += clear(spec, identity, app)
            continue
        left = LOOK_EVERY if asked_at is None else max(0.0, asked_at + grace - time.monotonic())
        doze(wake, min(LOOK_EVERY, left))
    if ended == LOST:
        return  # no code is invented: with the lock free and no end on disk, the caretaker says lost
    code, number = ended
    seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - identity["spawned"]
    killed += sweep(
        spec, identity, app, wake, LEFTOVER_GRACE if asked_at is None else asked_at + grace - time.monotonic()
    )
    rc, which = rc_file(spec)
    # The app is still a zombie of ours: if we die before this is on disk, the other half can read its code.
    end(
        {
            "ran": True,
            "code": code,
            "signal": number,
            "signalled_before": os.path.exists("signalled.json"),
            "killed": killed,
            "seconds": seconds,
            "rc_file": rc,
            "by": by,
        }
    )
    forget_rc(spec, which)
    reap(0)


def peek(app: int) -> tuple[Any, int | None] | None:
    """(code, signal) of the app where it has ended, without reaping it; other zombies are reaped."""
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return LOST
        if info is None:
            return None
        if info.si_pid != app:
            os.waitpid(info.si_pid, 0)
            continue
        if info.si_code == os.CLD_EXITED:
            return info.si_status, None
        return None, info.si_status


def sweep(spec: Spec, identity: Spec, app: int, wake: int, grace: float) -> int:
    """End what the app left running: politely, then not. Returns how many had to be killed."""
    until = time.monotonic() + max(0.0, grace)
    asked: set[int] = set()
    while True:
        left = [pid for pid in tree(spec, identity) if pid != app]
        if not left:
            return 0
        if time.monotonic() >= until:
            return clear(spec, identity, app)
        for pid in left:
            if pid not in asked:
                asked.add(pid)
                hit(pid, signal.SIGTERM)
        doze(wake, 0.05)
        reap(app)


def clear(spec: Spec, identity: Spec, app: int) -> int:
    """Stop, walk, kill, until nothing is left: what is stopped cannot fork away."""
    killed: set[int] = set()
    while True:
        stopped: set[int] = set()
        while True:
            found = set(tree(spec, identity)) - stopped
            if not found:
                break
            for pid in found:
                hit(pid, signal.SIGSTOP)
            stopped |= found
        if not stopped:
            return len(killed)
        for pid in stopped:
            hit(pid, signal.SIGKILL)
        killed |= stopped
        time.sleep(0.005)
        reap(app)


def reap(app: int) -> None:
    """Reap what has ended, but not the app itself."""
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if info is None or info.si_pid == app:
            return
        os.waitpid(info.si_pid, 0)


def tree(spec: Spec, identity: Spec) -> list[int]:
    """Pids of the app's processes: our descendants, and whoever carries the attempt's marker."""
    ours = {os.getpid(), identity["inner"][0], identity["outer"][0]}
    parents: dict[int, int] = {}
    states: dict[int, str] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = stat_of(int(name))
            if stat is not None:
                states[int(name)], parents[int(name)] = stat[0], int(stat[1])
    found: set[int] = set()
    for pid in parents:
        walk, seen = pid, set[int]()
        while walk in parents and walk not in seen:
            seen.add(walk)
            if walk in ours and walk != pid:
                found.add(pid)
                break
            walk = parents[walk]
    marker = f"FLIGHTLOG_MARKER={spec['marker']}".encode()
    for pid in parents:
        if pid not in found and carries(pid, marker):
            found.add(pid)
    return [pid for pid in found - ours if states[pid] not in "ZX"]


def carries(pid: int, marker: bytes) -> bool:
    """Whether a process has the attempt's marker in its environment."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return marker in file.read().split(b"\0")
    except OSError:
        return False


def ordered(spec: Spec) -> bool:
    """Whether an order covers this start: it names a later position, or all starts before a time."""
    order = order_of()
    ms, _, seq = spec["start"].partition("-")
    through = (order.get("through") or "0-0").partition("-")[2]
    return bool(order) and (int(seq) <= int(through) or int(ms) <= int(order["before_ms"]))


def order_of() -> Spec:
    """The order beside the attempt's folder; empty where there is none."""
    return read("../abort")


def rc_file(spec: Spec) -> tuple[str | None, tuple[int, ...]]:
    """What the job wrote about its own return code (reference 2.3), and which file that was."""
    try:
        fd = os.open(os.path.join(spec["run"], RC_FILE), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None, ()
    try:
        found = os.fstat(fd)
        # A pipe in its place would keep us waiting for ever.
        text = os.read(fd, 200).decode(errors="replace") if stat.S_ISREG(found.st_mode) else None
        return text, which_file(found)
    finally:
        os.close(fd)


def which_file(found: os.stat_result) -> tuple[int, ...]:
    """This very file: an inode's number is soon another's."""
    return found.st_dev, found.st_ino, found.st_ctime_ns


def forget_rc(spec: Spec, which: tuple[int, ...]) -> None:
    """Remove what was read of a return code; once the end is on disk, the next attempt may have written its own."""
    path = os.path.join(spec["run"], RC_FILE)
    try:
        if which_file(os.stat(path, follow_symlinks=False)) == which:
            os.unlink(path)
    except OSError:
        pass


def listen() -> int:
    """A descriptor that becomes readable whenever a signal comes."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # an order is the only thing that ends an app
    return read_end


def doze(wake: int, seconds: float) -> None:
    """Sleep until a signal comes or the time is over."""
    ready, _, _ = select.select([wake], [], [], max(0.0, seconds))
    if ready:
        os.read(wake, 4096)


def hit(pid: int, number: int) -> None:
    """Signal a process that may be gone."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def end(value: Spec) -> None:
    """Write the end down."""
    write("exit.json", value)


def read(name: str) -> Spec:
    """A JSON object from a file; empty where there is none. A pipe in its place would keep us waiting for ever."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    with open(fd, encoding="utf-8") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return {}
        text = file.read()
    import json  # not on the way to a launch

    value: Spec = json.loads(text)
    return value


def as_json(value: Any) -> str:
    """JSON of what the keeper writes; the json module would delay every launch."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_json(k)}: {as_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_json, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(c if " " <= c <= "~" and c not in '"\\' else escaped(c) for c in value) + '"'
    return repr(value)


def escaped(char: str) -> str:
    """A character as JSON escapes: UTF-16, so one beyond the first plane takes two."""
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def write(name: str, value: Spec) -> None:
    """A JSON file that is there whole and on disk, or not at all."""
    part = f".{name}.{os.getpid()}"
    with open(part, "w", encoding="utf-8") as file:
        file.write(as_json(value))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, name)
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def forget(fd: int) -> None:
    """Close a descriptor, where there is one."""
    if fd >= 0:
        os.close(fd)


def say(fd: int, word: str) -> None:
    """Tell the launcher, who may be gone."""
    try:
        os.write(fd, word.encode() + b"\n")
    except BrokenPipeError:
        pass


def subreaper() -> None:
    """Become the parent of orphaned descendants."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def boot_id() -> str:
    """This boot of this machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def stat_of(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; None where the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def start_ticks(pid: int) -> int:
    """Start time in clock ticks after boot."""
    stat = stat_of(pid)
    return int(stat[19]) if stat else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--probe-network"]:
        sys.exit(probe())
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else -1))
