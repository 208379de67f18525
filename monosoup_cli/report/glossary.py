"""What the words of tables and pages mean, for somebody who has not read the paper."""

from __future__ import annotations

__all__ = ["MEANINGS", "OF_COMPARISONS", "OF_SCORES", "OF_SEARCH", "OF_SWEEPS", "WORDS"]

MEANINGS = {
    "rank": "How many directions the update of the layer can have: the shorter side of its matrix.",
    "effective_rank": "How many directions the update really uses, from the entropy of its singular values.",
    "k": "How many of the strongest directions make up the strong part of the update.",
    "k_ratio": "The share of the directions that count as strong.",
    "energy_high": "The share of the update's energy, its squared size, that the strong part holds.",
    "rho": "The strongest direction of the weak part against the strongest of all: the square of the ratio of"
    " their singular values.",
    "cos_alpha": "The size of the weak part as a share of the size of the update, which is the cosine of the"
    " angle between them. The paper calls it cos α.",
    "lambda_high": "What the edit multiplies the strong part of the update by: 1 keeps it, 0 removes it.",
    "lambda_low": "What the edit multiplies the weak part of the update by: 1 keeps it, 0 removes it.",
    "equivalent_alpha": "How far the edit goes from the base (0) to the fine-tuned checkpoint (1): the α of"
    " the plain interpolation that comes nearest to it.",
    "anisotropy": "How far the edit is from that plain interpolation, as a share of the update. At 0, the"
    " edit is one.",
    "sigma_max": "The largest singular value of the update, in the units of the weights.",
    "update_norm": "The size of the update: the norm of the difference between fine-tuned and base weights.",
    "relative_update": "The size of the update as a share of the size of the base's weights. From about 1 on,"
    " the base may be the wrong one.",
    "cosine": "How alike the updates of the checkpoints are: 1 is the same direction, 0 is unrelated.",
    "ratio": "How far Model Stock goes from the base (0) to the mean of the checkpoints (1).",
    "clamped": "Whether the ratio was below 0, so that 0 was used.",
    "alpha": "How far WiSE-FT goes from the base (0) to the fine-tuned checkpoint (1).",
    "scale": "What LiNeS multiplies the update of the layer by: 1 keeps it, 0 leaves the base.",
    "base_distance": "The size of the difference between the two bases, as a share of the size of the first.",
    "overlap": "How alike the update and the difference between the two bases are: 1 is the same direction, 0"
    " is unrelated.",
    "factor_rank": "The rank of the adapter's two factors of the layer.",
    "factor_error": "The share of the update, in size, that the adapter's factors leave out.",
    "k_entropy": "The k of the rule --split entropy, which is the default.",
    "k_energy_entropy": "The k of the rule --split energy-entropy.",
    "k_noise": "The k of the rule --split noise: how many directions are stronger than noise would be.",
    "rank_above_rounding": "How many directions are stronger than the error of rounding to the stored dtype.",
}
"""A sentence or two for every measure that has a label."""

OF_COMPARISONS = {
    "reach": "How far the output goes from the base (0) to the fine-tuned weights (1). Each method has a"
    " measure for it: the equivalent α of an edit, the α of WiSE-FT, the scale of LiNeS, or the ratio of"
    " Model Stock."
}
"""Measures that only comparisons have."""

WORDS = {
    "update": "What fine-tuning changed: the fine-tuned weights minus the base's.",
    "strong and weak part": "The update of a layer is a sum of directions. The strongest of them are the"
    " strong part, the others the weak part.",
    "spectrum": "The singular values of the update, σ_i, largest first: how strong each of its directions is,"
    " as a share of the strongest.",
    "kept": "A tensor that the method did not edit, for the reason that is given. It is as fine-tuned, or the"
    " mean of several checkpoints, unless the line of kept tensors says otherwise.",
}
"""Words that are no measures."""

OF_SEARCH = {
    "candidate": "What one command with one set of options makes, which was scored.",
    "Pareto front": "The candidates that no other candidate beats in one score without losing in the other.",
}
"""Words of the page of a search."""

OF_SWEEPS = {"--wise": "How far the output goes from the base (0) to the edit (1), as --wise says."}
"""Words of the page of an `edit` with several --wise."""

OF_SCORES = {
    "in distribution": "Tasks like the data of the fine-tuning. They are marked (in).",
    "out of distribution": "Tasks unlike the data of the fine-tuning. They are marked (out).",
    "difference": "The score of the edited model minus that of the fine-tuned one.",
    "95% interval": "How far the difference may be off, if other samples of the same tasks were drawn"
    " (paired bootstrap). It is of this comparison alone, and not corrected for their number.",
    "p": "How likely a difference of at least this size would be if the edit changed nothing. The test is"
    " McNemar's exact test where answers are right or wrong, and a sign-flip permutation test otherwise.",
    "corrected p": "p after Holm's correction for all comparisons of the table.",
    "better, worse": "The corrected p is below 0.05, so the difference is hardly chance.",
    "may be better, may be worse": "Alone, the difference would hardly be chance: its p is below 0.05. One of"
    " so many comparisons easily is, so the corrected p is 0.05 or more.",
    "no difference shown": "There may be a difference, but these samples are too few to show it.",
    "no change": "Every sample scores as before. Of other samples, some may still change.",
    "healed": "Of the samples that the base alone got right, those that the edited model gets right.",
    "preserved": "Of the samples that base and fine-tuned model got right, those that the edited model gets"
    " right.",
    "damaged": "Of the samples that base and fine-tuned model got right, those that the edited model gets"
    " wrong.",
    "retained": "Of the samples that the fine-tuned model alone got right, those that the edited model gets"
    " right.",
    "as base": "Of the samples on which base and fine-tuned model differ, those on which the edited model is"
    " nearer to the base.",
}
"""The words of a comparison of scores."""
