"""Which file system a folder is on: what locks and renames are worth there."""

from pathlib import Path

import psutil

SHARED = {
    *("nfs", "nfs3", "nfs4", "cifs", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs"),
    *("gpfs", "pvfs2", "orangefs", "ocfs2", "gfs2", "panfs", "webdav", "davfs", "fuseblk", "virtiofs"),
}
"""Kinds that several machines can write at a time, or whose locks may end at the machine."""


def shared_kind(path: Path) -> str | None:
    """The kind of file system of `path` if other machines may see it, such as `nfs4` or `fuse.sshfs`; else None.

    Other machines may not see a lock that is taken there.
    """
    kind = _kind(path)
    return kind if kind in SHARED or kind.startswith("fuse.") else None


def _kind(path: Path) -> str:
    """The kind of the innermost mount that holds `path`; empty where the system does not say."""
    resolved = path.resolve()
    try:
        mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    except (OSError, RuntimeError):  # a system that does not list its mounts
        return ""
    for place in (resolved, *resolved.parents):
        if place in mounts:
            return str(mounts[place]).lower()
    return ""
