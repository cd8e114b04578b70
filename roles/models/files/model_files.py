"""Checks model files against the catalogue, and puts new ones in their place. Runs on the nodes; standard library only.

    model_files.py check  DIRECTORY '{"file": "sha256", ...}' [--read-only]
    model_files.py install DIRECTORY FILE SHA256 SOURCE OWNER GROUP

A model may have 40 GB, so its hash is not computed at every run. Beside each file lies a stamp, `.FILE.sha256`, with the hash found
and the file's size and time of change when it was computed; while those two are the same the hash is taken from the stamp.
"""

import grp
import hashlib
import json
import os
import pwd
import sys
from typing import Any, BinaryIO, Dict, List, Optional


def digest_of(path: str, copy_to: Optional[BinaryIO] = None) -> str:
    """The file's sha256; on the way the bytes may be copied."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while True:
            block = stream.read(1 << 22)
            if not block:
                return digest.hexdigest()
            digest.update(block)
            if copy_to:
                copy_to.write(block)


def stamp_path(path: str) -> str:
    return os.path.join(os.path.dirname(path), "." + os.path.basename(path) + ".sha256")


def state_of(path: str) -> str:
    found = os.stat(path)
    return f"{found.st_size} {found.st_mtime_ns}"


def read_stamp(path: str) -> Optional[str]:
    """The hash of a file that has not changed since it was computed, else None."""
    try:
        with open(stamp_path(path)) as stream:
            digest, state = stream.read().strip().split(" ", 1)
    except (OSError, ValueError):
        return None
    return digest if state == state_of(path) else None


def write_stamp(path: str, digest: str) -> None:
    partial = f"{stamp_path(path)}.{os.getpid()}"
    with open(partial, "w") as stream:
        stream.write(f"{digest} {state_of(path)}\n")
    os.replace(partial, stamp_path(path))


def check(directory: str, wanted: Dict[str, str], read_only: bool) -> Dict[str, Any]:
    """For each file: absent, right or wrong (then with the hash found); and whether a stamp was written."""
    states: Dict[str, Dict[str, str]] = {}
    stamped = False
    for name, expected in sorted(wanted.items()):
        path = os.path.join(directory, name)
        if not os.path.exists(path):
            states[name] = {"state": "absent"}
            continue
        digest = read_stamp(path)
        if digest is None:
            digest = digest_of(path)
            if not read_only:
                write_stamp(path, digest)
                stamped = True
        states[name] = {"state": "right" if digest == expected else "wrong", "sha256": digest}
    return {"files": states, "stamped": stamped}


def install(directory: str, name: str, expected: str, source: str, owner: str, group: str) -> None:
    """Copies (or moves, if it is an incoming file) a source to its place, which sees a whole and right file or nothing new."""
    path = os.path.join(directory, name)
    incoming = os.path.join(directory, ".incoming-" + name)
    try:
        if source == incoming:
            digest = digest_of(incoming)
        else:
            if os.path.lexists(incoming):
                os.unlink(incoming)
            with open(incoming, "xb") as target:  # never through a link
                digest = digest_of(source, target)
        if digest != expected:
            sys.exit(f"{source}: its sha256 is {digest}, the catalogue wants {expected}; nothing was installed")
        with open(incoming, "rb") as stream:
            os.fchmod(stream.fileno(), 0o644)
            os.fchown(stream.fileno(), pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)
            os.fsync(stream.fileno())
        os.replace(incoming, path)
        write_stamp(path, digest)
    finally:
        if os.path.exists(incoming):
            os.unlink(incoming)


def main(arguments: List[str]) -> None:
    if arguments[0] == "check":
        print(json.dumps(check(arguments[1], json.loads(arguments[2]), "--read-only" in arguments[3:])))
    else:
        install(*arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
