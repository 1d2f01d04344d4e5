"""One section a study, by the study's name in the manifest. A new study adds its file here and one line."""

from collections.abc import Callable

from lesion.errors import RunFolderError
from lesion.report.content import Section
from lesion.report.sections import copying, layers, training
from lesion.report.sections.zero_modes import ablate, diff, dynamics, overlap, wanda
from lesion.results import RunView

SECTIONS: dict[str, Callable[[RunView], Section]] = {
    "copying": copying.section,
    "layers": layers.section,
    "train finetune": training.section,
    "train pretrain": training.section,
    "zero-modes ablate": ablate.section,
    "zero-modes diff": diff.section,
    "zero-modes overlap": overlap.section,
    "zero-modes dynamics": dynamics.section,
    "zero-modes wanda": wanda.section,
}


def section_of(run: RunView) -> Section:
    """The section of a run.

    Raises:
        RunFolderError: no section is known for its study, or it has no results yet.
    """
    study = str(run.manifest.get("study"))
    if study not in SECTIONS:
        raise RunFolderError(f"{run.path}: no report is known for the study {study!r}; known: {', '.join(SECTIONS)}")
    return SECTIONS[study](run)
