"""One frozen tree of settings. YAML file + dotted overrides -> `Config`; unknown keys and bad values are errors.

`load_config("configs/tiny.yaml", ["--rollouts.num_samples", "8"])`. The resolved tree is saved in the run folder, so
a run can be repeated from its own `config.yaml`. Knows no stage and no model.
"""

from ssb_jax.config.errors import SsbError
from ssb_jax.config.loading import config_from_dict, dump_config, load_config, read_yaml
from ssb_jax.config.tree import (
    Config,
    Data,
    Distillation,
    Engine,
    Evaluation,
    EvaluationSet,
    Grading,
    Grpo,
    Lora,
    Mesh,
    Method,
    Model,
    OnPolicy,
    Prompts,
    Rollouts,
    Sampling,
    Section,
    Study,
    Targets,
    Teaching,
)

__all__ = [
    "Config",
    "Data",
    "Distillation",
    "Engine",
    "Evaluation",
    "EvaluationSet",
    "Grading",
    "Grpo",
    "Lora",
    "Mesh",
    "Method",
    "Model",
    "OnPolicy",
    "Prompts",
    "Rollouts",
    "Sampling",
    "Section",
    "SsbError",
    "Study",
    "Targets",
    "Teaching",
    "config_from_dict",
    "dump_config",
    "load_config",
    "read_yaml",
]
