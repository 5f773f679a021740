"""Semantic Soft Bootstrapping (arXiv 2512.05105) in JAX: a language model learns from its own hinted solutions.

The flow, each arrow one file of `ssb_jax/stages`:

    questions     data set rows          -> Question
    rollouts      Question               -> K Rollouts each, by the base model
    verification  Rollout                -> Verdict
    hints         Verdicts               -> Hint (one correct, the most common incorrect), or a drop reason
    teaching      Hint                   -> Pair: a verified hinted solution with its two prompts
    targets       Pair                   -> the teacher's distribution on the reply tokens
    distillation  Pair + targets         -> LoRA adapter
    evaluation    base and adapter       -> accuracy with intervals, per-question rows

Dimension letters used in every docstring: B batch, T tokens, S cache length, D width, N query heads, K key/value
heads, G = N / K, H head size, F feed-forward width, V vocabulary, R LoRA rank, L layers, C chunk of tokens.
"""

__version__ = "0.1.0"
