#!/usr/bin/env python3
"""Verify a proof or a bundle of Flightlog's, with nothing of Flightlog's: this file and ``cryptography``.

    python flightlog_verify.py PROOF.json|BUNDLE.zip|FOLDER [--key KEY] [--witness-key KEY]

It shows that each event was in the log which the site signed (RFC 6962 inclusion, Ed25519), and which witnesses
cosigned it. That the key is the site's is for you to know: compare it with what the site's operator tells you, or
name it with --key. Exit code 0: all hold; 7: something does not; 8: it could not be told.
"""

import base64
import hashlib
import itertools
import json
import lzma
import sys
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MOST = 1 << 30  # bytes of one part of a bundle


def leaf(event):
    """The hash of an event's stored fields, each with its length before it."""
    parts = [str(event[name]).encode() for name in ("position", "type", "subject", "version", "d")]
    return hashlib.sha256(b"\0" + b"".join(len(p).to_bytes(4, "big") + p for p in parts)).digest()


def root_from(have, index, size, proof):
    """The root that an inclusion proof leads to (RFC 9162, 2.1.3.2); None where it cannot be one."""
    if not 0 <= index < size:
        return None
    first, last = index, size - 1
    for step in proof:
        if last == 0:
            return None
        if first & 1 or first == last:
            have = hashlib.sha256(b"\1" + step + have).digest()
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            have = hashlib.sha256(b"\1" + have + step).digest()
        first, last = first >> 1, last >> 1
    return have if last == 0 else None


def signed(text, line, key):
    """Whether a signature line is a key's over a note's text."""
    name, key_id, rest = key.strip().split("+", 2)
    algorithm, public = base64.b64decode(rest)[0], base64.b64decode(rest)[1:]
    if hashlib.sha256(f"{name}\n".encode() + bytes([algorithm]) + public).digest()[:4].hex() != key_id:
        return False
    said, _, data = line[2:].partition(" ")
    raw = base64.b64decode(data)
    if said != name or raw[:4].hex() != key_id:
        return False
    message, signature = text.encode(), raw[4:]
    if algorithm == 4:
        message = f"cosignature/v1\ntime {int.from_bytes(signature[:8], 'big')}\n{text}".encode()
        signature = signature[8:]
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def chained(lines, anchor):
    """Keys of the site: the first, or the one you name, and each that the one before it signed."""
    trusted = [anchor or lines[0].partition(" ")[0]]
    for line in lines:
        key, _, proof = line.partition(" ")
        if key not in trusted and proof:
            public = [Ed25519PublicKey.from_public_bytes(base64.b64decode(t.split("+", 2)[2])[1:]) for t in trusted]
            for one in public:
                try:
                    one.verify(base64.b64decode(proof), key.encode())
                    trusted.append(key)
                    break
                except InvalidSignature:
                    continue
    return trusted


def _public(text):
    return base64.b64decode(text)[1:]


def check(proofs, anchor, known):
    """All proofs: what does not hold, by which keys all of them are signed, and who cosigned each."""
    wrong, by_site, vouched = [], set(), []
    logs = {proof["checkpoint"].split("\n")[0].rpartition("/")[0] for proof in proofs}
    if len(logs) > 1:
        wrong.append(f"its proofs are of several logs: {', '.join(sorted(logs))}")
    for proof in proofs:
        event, note = proof["event"], proof["checkpoint"]
        text, _, tail = note.rpartition("\n\n")
        text += "\n"
        origin, size, root = text.split("\n")[:3]
        lines = [line for line in tail.split("\n") if line]
        steps = [base64.b64decode(step) for step in proof["proof"]]
        seq = int(event["position"].partition("-")[2])
        if root_from(leaf(event), seq - 1, int(size), steps) != base64.b64decode(root):
            wrong.append(f"event {event['position']} is not in the log that was signed, or was changed")
        of_log = [line for line in proof["keys"] if line.startswith(origin.rpartition("/")[0] + "+")]
        keys = [k for k in chained(of_log or proof["keys"], anchor) if k in [one.partition(" ")[0] for one in of_log]]
        signers = {key for key in keys for line in lines if signed(text, line, key)}
        if not signers:
            wrong.append(f"the checkpoint for event {event['position']} is not signed with the site's key")
        by_site |= signers
        own = {key.partition(" ")[0].split("+", 2)[2] for key in proof["keys"]}
        listed = known or proof.get("witnesses", [])
        # A witness has a key of another kind (4), and is not the site itself.
        able = [key for key in listed if base64.b64decode(key.split("+", 2)[2])[0] == 4]
        able = [key for key in able if base64.b64decode(key.split("+", 2)[2])[1:] not in map(_public, own)]
        vouched.append({key for key in able for line in lines if signed(text, line, key)})
    return wrong, by_site, vouched


def same(shown, stored):
    """Whether what is to be read is what is stored; locked fields can only be shown by the site."""
    if isinstance(stored, str) and "~e1." in stored:
        return True
    if isinstance(stored, dict) and isinstance(shown, dict):
        return shown.keys() == stored.keys() and all(same(shown[name], stored[name]) for name in stored)
    if isinstance(stored, list) and isinstance(shown, list):
        return len(shown) == len(stored) and all(map(same, shown, stored))
    return shown == stored


def shown_as_stored(shown, event):
    """Whether an event is shown as it is stored: by its own names in a proof, as a CloudEvent in a bundle."""
    rest = json.loads(event["d"])
    moment = datetime.fromtimestamp(int(event["position"].partition("-")[0]) / 1000, UTC)
    told = {name: rest[name] for name in ("schema", "actor", "step", "arguments", "cause", "correlation", "body")}
    told["call_id"] = rest["call"]
    time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if "data" in shown:
        ours = ("flightlog." + event["type"], event["subject"], event["version"], event["d"], time)
        said = tuple(shown.get(n) for n in ("type", "subject", "flightlogversion", "flightlogdata", "time"))
        epoch = str(shown.get("source")).rpartition("/")[2]
        return ours == said and epoch == str(rest["epoch"]) and same(shown["data"], told)
    told |= {name: event[name] for name in ("position", "type", "subject", "version")}
    return same(shown, told | {"time": time, "epoch": rest["epoch"]})


def readable(events, proofs):
    """What is shown otherwise than it is stored, twice, not at all, or in another order."""
    stored = [proof["event"] for proof in proofs]
    if [event["id"] for event in events] != [event["position"] for event in stored]:
        yield "events.jsonl and proofs.jsonl are not about the same events"
        return
    if len({event["subject"] for event in stored}) > 1:
        yield "its events are of several jobs"
    if [event["version"] for event in stored] != list(range(1, len(stored) + 1)):
        yield "events of the job are missing, or come twice"
    places = [tuple(map(int, event["position"].split("-"))) for event in stored]
    if any(one >= next_ for one, next_ in itertools.pairwise(places)):
        yield "its events are not in the order of the log"
    for shown, event, proof in zip(events, stored, proofs, strict=True):
        if not (shown_as_stored(shown, event) and shown_as_stored(proof["readable"], event)):
            yield f"event {event['position']} is shown otherwise than it is stored"


def load(path):
    """Proofs and readable events, from a proof, a bundle or an unpacked one."""
    path = Path(path)
    if (path.is_file() and path.suffix == ".json") or (path.is_file() and not zipfile.is_zipfile(path)):
        return [json.loads(path.read_text("utf-8"))], None
    if path.is_dir():
        names = [(path / name).read_text("utf-8") for name in ("proofs.jsonl", "events.jsonl")]
    else:
        with zipfile.ZipFile(path) as bundle:
            for name in ("proofs.jsonl", "events.jsonl"):
                if bundle.getinfo(name).file_size > MOST:
                    raise ValueError(f"{name} has more than {MOST} bytes: it is no bundle of a job")
            names = [bundle.read(name).decode() for name in ("proofs.jsonl", "events.jsonl")]
    return [[json.loads(line) for line in text.split("\n") if line] for text in names]


def main(arguments):
    """Verify, and say so."""
    options = {"--key": None, "--witness-key": None}
    for name in options:
        if name in arguments:
            at = arguments.index(name)
            given = arguments[at + 1 : at + 2]
            if not given or given[0].count("+") < 2:
                print(f"{name} wants a key: <name>+<key id>+<base64>")
                return 2
            options[name] = given[0]
            del arguments[at : at + 2]
    if len(arguments) != 1:
        print(__doc__)
        return 2
    known = [options["--witness-key"]] if options["--witness-key"] else []
    try:
        proofs, events = load(arguments[0])
        wrong, by_site, vouched = check(proofs, options["--key"], known)
        if events is not None and not wrong:
            wrong += readable(events, proofs)
        elif not wrong:
            wrong += [
                f"event {one['event']['position']} is shown otherwise than it is stored"
                for one in proofs
                if "readable" in one and not shown_as_stored(one["readable"], one["event"])
            ]
    except (zipfile.BadZipFile, zlib.error) as error:
        print(f"DAMAGED: the archive was changed: {error}")
        return 7
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError) as error:
        print(f"could not verify: {type(error).__name__}: {error}")
        return 8
    except (RuntimeError, lzma.LZMAError, MemoryError) as error:  # encrypted, packed by a way that is not here, deep
        print(f"could not verify: {type(error).__name__}: {error}")
        return 8
    for one in wrong[:20]:
        print(f"WRONG: {one}")
    if wrong:
        print(f"DAMAGED: {len(wrong)} of {len(proofs)} events do not verify.")
        return 7
    if not proofs:
        print("could not verify: there are no events in it")
        return 8
    by_all = set.intersection(*vouched)
    seen = sum(1 for one in vouched if one)
    print(f"{'WITNESSED' if seen == len(proofs) else 'SITE-SIGNED'}: {len(proofs)} events verify.")
    if 0 < seen < len(proofs):
        print(f"  Of them {seen} are cosigned by a witness; for the others there is the site's word alone.")
    if events is not None:
        last = proofs[-1]["event"]
        print(f"  They are {last['subject']} up to its version {last['version']}; what came later is not in it.")
    print(
        "  What holds is the events. Fields that name persons, the page and the manifest are as the site shows them."
    )
    for key in sorted(by_site):
        print(f"  signed with the site's key {key}")
    for key in sorted(by_all or set().union(*vouched)):
        print(f"  cosigned by the witness {key}" + ("" if by_all else ", in part"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
