"""The run folder: which stage follows which, what each one is made from, and what a whole run reports.

    questions/                               the questions, once
    blocks/0000/{rollouts,verification,hints,teaching}/   block by block, until there are enough pairs
    pairs/                                   the first `teaching.max_pairs` pairs in question order
    targets/  distillation/                  the teacher's distributions, the adapter (method grpo: grpo/)
    evaluation/SET/{questions,base,METHOD}/  answers of each model; evaluation/results.json with every row

Each folder is completed by a manifest that says what it was made from; a complete folder is not made again, one that
was cut off is continued, one made from other settings is refused. Settings that change only speed (mesh, engine,
batch sizes of forward passes, logging) are not part of what a folder is made from.
"""

from ssb_jax.pipeline.evaluation import evaluate
from ssb_jax.pipeline.funnel import funnel, funnel_of
from ssb_jax.pipeline.methods import confirm, reinforce, run_all, survey, train
from ssb_jax.pipeline.pairs import load_pairs, make_pairs, roll_out, teach
from ssb_jax.pipeline.run import Run, keeping_config, load_questions
from ssb_jax.pipeline.student import check_settings, distil, make_targets
from ssb_jax.pipeline.views import hints_by_id, view_pairs

__all__ = [
    "Run",
    "check_settings",
    "confirm",
    "distil",
    "evaluate",
    "funnel",
    "funnel_of",
    "hints_by_id",
    "keeping_config",
    "load_pairs",
    "load_questions",
    "make_pairs",
    "make_targets",
    "reinforce",
    "roll_out",
    "run_all",
    "survey",
    "teach",
    "train",
    "view_pairs",
]
