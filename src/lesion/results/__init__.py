"""Run folders: tables, manifest and shards, written atomically, locked, resumable, and read back with their digests."""

from lesion.results.atomic import atomic_write, file_digest
from lesion.results.canonical import canonical_json, digest, run_name
from lesion.results.provenance import commit, versions
from lesion.results.run_folder import SCHEMA, RunFolder
from lesion.results.shards import ShardStore
from lesion.results.view import RunView

__all__ = [
    "SCHEMA",
    "RunFolder",
    "RunView",
    "ShardStore",
    "atomic_write",
    "canonical_json",
    "commit",
    "digest",
    "file_digest",
    "run_name",
    "versions",
]
