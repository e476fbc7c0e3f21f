"""The folder compiled kernels are kept in: where it is, who may write to it, and one writer at a time."""

import logging
import os
import stat
from contextlib import contextmanager
from pathlib import Path

from adapt_kernels import env
from adapt_kernels.native.toolchain import NativeBuildError

_log = logging.getLogger("adapt_kernels")


def cache_folder() -> Path:
    """`$ADAPT_KERNELS_CACHE`, else adapt_kernels in the user's cache. May not exist yet."""
    chosen, users = env.get("ADAPT_KERNELS_CACHE"), env.get("XDG_CACHE_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        if users and os.path.isabs(users):
            return Path(users, "adapt_kernels")
        return Path.home() / ".cache/adapt_kernels"
    except RuntimeError as error:
        raise NativeBuildError(
            "no home folder", "a cache folder", "HOME, XDG_CACHE_HOME", ("set ADAPT_KERNELS_CACHE to a folder",)
        ) from error


@contextmanager
def explained():
    """Turns what the file system refuses into a NativeBuildError."""
    try:
        yield
    except OSError as error:
        raise NativeBuildError(
            f"the cache folder cannot be used: {error}",
            "a folder to write to",
            str(cache_folder()),
            ("set ADAPT_KERNELS_CACHE to a folder of yours on a disk with space",),
        ) from error


@explained()
def refuse_untrusted(folder: Path) -> None:
    """Raises NativeBuildError if someone else may write to `folder` or the cache above it: its files run as code."""
    root = cache_folder()
    for level in (folder, *folder.parents):
        if not level.is_relative_to(root):
            return
        if not level.exists():
            continue
        status = level.stat()
        if status.st_uid not in (os.geteuid(), 0):
            problem = f"the cache folder {level} belongs to another user (uid {status.st_uid})"
        elif status.st_mode & stat.S_IWOTH:
            problem = f"the cache folder {level} is writable by everyone"
        else:
            continue
        raise NativeBuildError(
            problem,
            "a folder only you can write to",
            str(level),
            ("set ADAPT_KERNELS_CACHE to a folder of yours", f"delete {level}"),
        )


def make_private(folder: Path) -> None:
    """Creates `folder` and the cache above it, closed to other users."""
    root = cache_folder()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    inner = root
    for part in folder.relative_to(root).parts:
        inner /= part
        inner.mkdir(mode=0o700, exist_ok=True)
    refuse_untrusted(folder)


@contextmanager
def locked(path: Path):
    """Holds an exclusive lock; the system gives it back when the process ends, however it ends."""
    # Not at the top of the file: Windows has no fcntl, and there the reference backend still works.
    import fcntl

    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("another process is compiling; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
