"""The `lesion` command in processes of its own, many of them: what takes seconds to import is imported once."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = """
import json, os, resource, sys
import pandas, torch, transformers, lesion, lesion.cli
import lesion.checkpoints.edited, lesion.studies.zero_modes

def child(asked):
    os.chdir(asked["cwd"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    if asked["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest_file"],) * 2)
    sys.argv = ["lesion", *asked["argv"]]
    try:
        lesion.cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        sys.stdin.close()
        child(json.loads(line))
    print(pid, flush=True)
    _, status, used = os.wait4(pid, 0)
    print(os.waitstatus_to_exitcode(status), used.ru_maxrss, flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """What it said on stderr, which must be one line."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


class Running:
    """A process that has begun."""

    def __init__(self, server: "subprocess.Popen[str]", folder: Path) -> None:
        self._server, self._folder = server, folder
        self.pid = int(self._line())

    def end(self) -> Ended:
        """Waits for it."""
        code = int(self._line().split()[0])
        said = [(self._folder / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr")]
        return Ended(code, *said)

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()


class Commands:
    """Starts `lesion` with arguments, one process after the other."""

    def __init__(self, server: "subprocess.Popen[str]", folder: Path) -> None:
        self._server, self._folder = server, folder

    def start(self, *arguments: object, cwd: Path, largest_file: int = 0) -> Running:
        """Begins a command, which may write no file that is larger than `largest_file`."""
        asked: dict[str, Any] = {"argv": [os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments]}
        asked |= {name: str(self._folder / name) for name in ("stdout", "stderr")}
        asked |= {"cwd": str(cwd), "largest_file": largest_file}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return Running(self._server, self._folder)

    def __call__(self, *arguments: object, cwd: Path, largest_file: int = 0) -> Ended:
        """Begins a command and waits for its end."""
        return self.start(*arguments, cwd=cwd, largest_file=largest_file).end()


@contextmanager
def commands(folder: Path) -> Iterator[Commands]:
    """Processes that are forked off one that has imported everything; their output goes through files in `folder`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        yield Commands(server, folder)
        assert server.stdin is not None
        server.stdin.close()
