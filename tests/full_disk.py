"""Disks without room: one imitated by a limit, and a real small one."""

import contextlib
import resource
import signal
import subprocess


@contextlib.contextmanager
def files_end_at(size: int):
    """No file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


class NotPermittedError(Exception):
    """Only root may mount."""


@contextlib.contextmanager
def small_disk(folder, megabytes: int):
    """Mounts a file system of this size at `folder`; yields what mounts it again with options."""

    def mount(options: str, *kind: str) -> None:
        command = ["mount", "-o", options, *kind, str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise NotPermittedError from error

    mount(f"size={megabytes}m", "-t", "tmpfs", "none")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
