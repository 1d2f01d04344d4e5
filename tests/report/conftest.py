"""Makes the fixture for synthetic runs known to all tests of the report."""

from tests.report.report_runs import make_run

__all__ = ["make_run"]
