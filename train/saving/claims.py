"""Claims: of several calls with --resume at once, only one trains a run; the others learn its folder."""

import errno
import fcntl
import hashlib
import os
from contextlib import suppress
from functools import cache
from pathlib import Path


class Claims:
    """Claims of this process to runs below `root`, by identity. Each ends when it is given back or the process dies.

    A claim is a lock on one byte of a file, so a process may have any number of them.
    """

    def __init__(self, root: Path) -> None:
        # Never closed: that would give all claims back.
        self.file = (folder_of_claims(root) / "lock").open("ab")

    def take(self, identity: str) -> bool:
        """Claim a run. Return False if another process has the claim."""
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte_of(identity))
        except OSError as error:
            # On a file system without locks every call gets the claim.
            return error.errno not in (errno.EACCES, errno.EAGAIN)
        return True

    def give_back(self, identity: str) -> None:
        """End the claim to a run, so that other processes may have it."""
        with suppress(OSError):
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, byte_of(identity))


@cache
def claims_in(root: Path) -> Claims:
    """Return the claims of this process to runs below `root`."""
    return Claims(root)


def byte_of(identity: str) -> int:
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:7])


def folder_of_claims(root: Path) -> Path:
    folder = root / "saved-models" / ".claims"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def note_folder(root: Path, identity: str, folder: Path) -> None:
    """Note the folder of a run, so that other calls find it without a walk through all folders."""
    (folder_of_claims(root) / identity).write_bytes(os.fsencode(folder.relative_to(root)))


def noted_folder(root: Path, identity: str) -> Path | None:
    """Return the folder noted last for a run, under the name it had then; None if there is no note."""
    try:
        noted = os.fsdecode((folder_of_claims(root) / identity).read_bytes())
    except OSError:
        return None
    folder = Path(os.path.normpath(root / noted))
    return folder if root / "saved-models" in folder.parents else None
