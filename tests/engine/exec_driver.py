"""A driver to be stopped from outside: `python -m tests.engine.exec_driver FOLDER`, without a main guard on purpose."""

import sys
from pathlib import Path

from lesion.engine.executors import Processes
from tests.engine.exec_data import WAIT
from tests.engine.test_executors import job_of

job, _ = job_of(Path(sys.argv[1]), {0: WAIT, 1: WAIT})
try:
    Processes(job, ["cpu", "cpu"]).run([0, 1], lambda index, state: None, lambda tokens: None)
except KeyboardInterrupt:
    sys.exit(130)
