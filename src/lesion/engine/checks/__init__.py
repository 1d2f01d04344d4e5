"""The contract of an anatomy, checked on a model's own weights: one function a check, one finding each.

A check measures one number and says what it must be. What it compares are mostly logits: `found` is then the greatest
difference at any real token, as a share of the largest logit.
"""

from collections.abc import Callable

from lesion.anatomy import Anatomy
from lesion.anatomy.files import fingerprint_in_memory
from lesion.engine.checks import blocks, edits, sites, weights, whole
from lesion.engine.checks.comparing import refuse_non_finite
from lesion.engine.checks.finding import Check, Finding, Measured
from lesion.engine.samples import Samples
from lesion.interventions import in_eval_mode

__all__ = ["CHECKS", "Check", "Finding", "Measured", "run_checks", "weights_unchanged"]

CHECKS: dict[str, Check] = {
    found.name: found
    for found in (
        whole.same_bits_twice,
        whole.plain_transformers,
        whole.later_tokens,
        whole.padding,
        whole.content_of_padding,
        blocks.blocks_one_by_one,
        blocks.from_a_block_on,
        blocks.sum_of_parts,
        *sites.fires,
        sites.identity_edits,
        sites.doubled_z,
        sites.z_is_all_of_attention,
        sites.mlp_post_is_all_of_the_mlp,
        weights.head_is_columns,
        weights.neurons_are_columns,
        edits.lane_is_context_manager,
        edits.stacked_lanes,
        edits.after_an_exception,
    )
}
"""Every check by its name, in the order in which they run."""


def run_checks(
    anatomy: Anatomy, samples: Samples, *, before: Callable[[str], None] = lambda name: None
) -> list[Finding]:
    """Runs every check, in eval mode; the model and its weights are afterwards what they were.

    Args:
        before: told the name of each check before it runs.

    Raises:
        NonFiniteError: the model's own logits are not finite, so that nothing can be compared.
        MemoryShortError: memory ran out.
    """
    samples = samples.to(anatomy.device)
    before_all = fingerprint_in_memory(anatomy.model)
    with in_eval_mode(anatomy.model):
        refuse_non_finite(anatomy, samples)
        findings = []
        for name, run in CHECKS.items():
            before(name)
            findings.append(run(anatomy, samples))
    return [*findings, weights_unchanged(anatomy, before_all)]


def weights_unchanged(anatomy: Anatomy, before: str) -> Finding:
    """Configuration and every weight are bit for bit those with the fingerprint `before`."""
    same = fingerprint_in_memory(anatomy.model) == before
    detail = "configuration and weights, by hash, before and after all checks"
    return Finding("weights unchanged", "ok" if same else "WRONG", detail, float(not same), "=", 0.0)
