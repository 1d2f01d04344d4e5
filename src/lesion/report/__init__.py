"""Reports: figures and one self-contained page from the tables of runs. Imports neither torch nor transformers."""

from lesion.report.write import write_report

__all__ = ["write_report"]
