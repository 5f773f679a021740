"""The tree of settings: frozen sections; the string under a field documents it.

Longer than other files on purpose: whoever looks for a setting finds all of them here, in the order of the stages.
"""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ssb_jax.config.benchmarks import with_benchmark


class Section(BaseModel):
    """A group of settings: frozen, no unknown keys, each field documented by the string under it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_true(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and not _takes_bool(cls.model_fields[info.field_name].annotation):
            raise ValueError(f"expected no {str(value).lower()} here (yes, no, on and off are YAML's spellings of it)")
        return value


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_bool, get_args(annotation)))


Fraction = Annotated[float, Field(ge=0, le=1)]


Positive = Annotated[float, Field(gt=0)]


NotNegative = Annotated[float, Field(ge=0)]


Count = Annotated[int, Field(ge=1)]


def _with_a_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"expected a regular expression: {error}") from None
    if not groups:
        raise ValueError("expected one group around the final answer, as in '#### *(.+)'")
    return pattern


Pattern = Annotated[str, AfterValidator(_with_a_group)]


Linear = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


Method = Literal["ssb", "ssb-torch", "sft", "rft", "grpo", "on-policy"]


class Model(Section):
    """The base model, which is teacher and (with LoRA) student."""

    path: str
    """Hub id, local folder, or `builtin:tiny`: a checkpoint in Qwen2 format."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer, when it is not the model's."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights and the matrix products; `auto` is bfloat16 on accelerators and float32 on CPU."""
    quantization: Literal["none", "int8"] = "none"
    """Keep the layers' matrices of the frozen base, which is teacher and student, in 8 bits, through qwix (`pip install
    'ssb-jax[quantization]'`). `distillation.remat: none` would keep them whole for the backward pass."""
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    """The kernel of prefill and training: splash attention on TPU, cuDNN on GPU, or XLA's own everywhere."""


class Data(Section):
    """A set of questions with final answers."""

    path: str
    """A JSONL file, a hub id for `datasets`, or `builtin:arithmetic`."""
    name: str | None = None
    """The hub data set's configuration (`main` for openai/gsm8k)."""
    split: str = "train"
    revision: str | None = None
    question_column: str = "question"
    answer_column: str = "answer"
    answer_pattern: Pattern | None = None
    """Regular expression whose first group is the final answer; `'#### *(.+)'` for GSM8K. None: the whole column."""
    id_column: str | None = None
    """Column holding a stable id. None: the id is made from the question's text."""
    limit: Count | None = None
    """Use the first `limit` questions (after the shuffle)."""
    shuffle_seed: int | None = None
    """Shuffle with this seed. None: file order, as published."""


class Prompts(Section):
    """How questions become messages. Each template is a name in `ssb_jax/prompts` or the path of a text file."""

    system: str = "tutor"
    """The system message; `none` sends no system message."""
    question: str = "question"
    """The user message of a bare question, with {{ question }}."""
    hinted: str = "hinted"
    """The teacher's user message, with {{ question }}, {{ correct }} and {{ incorrect }}."""
    examples: str | None = None
    """Worked example turns (YAML: a list of question, solution, and correct + incorrect for the hinted prompt)."""
    student_prompt: Literal["chat", "flat"] = "chat"
    """What the student is trained on: the chat template, or `flat` = the published scripts' system and user text
    joined by one space."""
    teach_stop: bool = True
    """Match the teacher at the end-of-turn token too. The published scripts leave it out (`false`)."""


class Sampling(Section):
    """How tokens are drawn. What is None comes from the model's generation_config.json, then transformers' defaults."""

    temperature: NotNegative | None = None
    """0 is greedy."""
    top_k: Annotated[int, Field(ge=0)] | None = None
    """0 is off."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """1 is off."""
    min_p: Fraction | None = None
    """0 is off."""
    repetition_penalty: Positive | None = None
    """1 is off."""
    max_new_tokens: Count = 1024


class Rollouts(Sampling):
    """Step 1: the base model answers each question `num_samples` times."""

    num_samples: Annotated[int, Field(ge=2)] = 4
    """K. At least 2: a question needs a correct and an incorrect rollout."""
    block_size: Count | None = 256
    """Questions are taken in blocks of this size until there are enough pairs. None: all at once."""
    attempts: Count = 2
    """How often a failed generation is tried before it is recorded as failed."""


class Grading(Section):
    """The verifier: sympy in worker processes with hard limits."""

    time_limit: Annotated[float, Field(gt=0, le=60)] = 1.5
    """Seconds a response."""
    workers: Count | None = None
    """Worker processes; None is one a core."""


class Teaching(Sampling):
    """Step 3: the same model sees question + hints and writes the solution that the student will learn."""

    max_pairs: Count | None = 256
    """Stop at this many pairs, in question order. None: use every question."""
    attempts: Count = 1
    """Solutions tried per hint until one verifies. 1 as published."""
    truncated: Literal["keep", "drop"] = "keep"
    """A solution whose box verifies but which max_new_tokens then cut off. Kept, as published, it teaches no end of the
    turn: where such solutions are many, the student learns to talk on."""
    min_wrong_count: Count = 1
    """Ask that the wrong answer be given by at least this many rollouts."""


class Targets(Section):
    """Step 4: the teacher's distribution on the reply tokens."""

    encoding: Literal["hidden", "logits", "topk", "none"] = "hidden"
    """`hidden`: the state after the last norm, exact through the frozen head at 2 x D bytes a token in bfloat16.
    `logits`: the full vocabulary, as the published scripts store it. `topk`: the `top_k` most likely words and all
    others as one bucket, for the losses that need no more. `none`: nothing; each step computes the teacher again."""
    top_k: Count = 100
    """Words that `topk` keeps."""
    views: tuple[Literal["bare", "swapped", "hint_only"], ...] = ()
    """Further prompts before the same replies, for losses that compare: the bare question; the hinted prompt with right
    and wrong answer exchanged; the hinted prompt without the question. Each is one more pass, and as large."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the stored numbers; `auto` is the model's dtype."""
    batch_size: Count = 8
    """Pairs in a teacher forward pass."""


class Lora(Section):
    """The student's adapter. Head and embedding stay frozen: stored hidden states become logits through them."""

    rank: Count = 32
    alpha: Positive = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Annotated[tuple[Linear, ...], Field(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _not_the_head(cls, names: Any) -> Any:
        for name in names if isinstance(names, list | tuple) else (names,):
            if name in ("lm_head", "embed_tokens"):
                raise ValueError(
                    f"LoRA on {name} is not possible: teacher and student share the frozen head, and stored hidden "
                    "states become logits through it; leave it out"
                )
        return names


class Distillation(Section):
    """Step 5: the student matches the teacher. The defaults are the published run's."""

    loss: str = "ssb"
    """A name of `ssb_jax/losses/menu.py`, or `module:function` or `path/to/file.py:function` of your own."""
    loss_options: dict[str, int | float | str] = {}
    """Options of the loss, such as `tau` of clipped_kl."""
    temperature: Positive = 2.0
    """Softens both distributions; the loss is multiplied by its square."""
    kl_weight: Fraction = 1.0
    """w: the loss is w times the divergence plus (1 - w) times the cross-entropy on the reply."""
    reduction: Literal["token", "sequence"] = "token"
    """Mean over all reply tokens of the batch (as published), or the mean of each reply's own mean."""
    stop_weight: NotNegative = 1.0
    """Weight of the end-of-turn token."""
    skip_first: Annotated[int, Field(ge=0)] = 0
    """So many first tokens of each reply do not count."""
    ignore_special_tokens: bool = False
    """Leave special tokens other than the end of turn out of the loss."""
    last_weight: NotNegative = 1.0
    """Weight of a reply's last token relative to its first, linear in between; above 1 it rises."""
    rise: tuple[Fraction, Fraction, Positive] | None = None
    """(least, middle, width): weights rise along each reply, least + (1 - least) * sigmoid((x - middle) / width) for x
    from 0 to 1. The paper (2605.21606) takes [0.25, 0.3, 0.1] and `reduction: sequence`."""
    fall: NotNegative | None = None
    """gamma: weights fall along each reply from 1 + gamma to 1, with the share of the disagreement of teacher and
    student that lies before the token. The paper (2606.22600) takes 0.5."""
    select: Literal["all", "uncertain", "uncertain_or_wrong"] = "all"
    """Which tokens count: those where the student hesitates most, or half those and half the ones where it is sure and
    farthest from the teacher."""
    select_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the tokens that `select` keeps."""
    learning_rate: Positive = 2e-4
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive | None = 1.0
    batch_size: Count = 4
    """Examples in an optimizer step."""
    micro_batch: Count | None = None
    """Examples in a forward and backward pass; gradients add up to the same token mean. None: the whole batch."""
    packing: bool = True
    """Put several examples in a row, each a segment of its own, where that saves padding. The loss is the same."""
    epochs: Count = 3
    max_length: Annotated[int, Field(ge=2)] = 8192
    """Tokens of prompt + reply; a longer prompt is cut on the left, a longer reply on the right, both counted."""
    chunk_tokens: Count = 512
    """Reply tokens that pass through the head at a time; on a CPU 64 is faster than 512, with a large vocabulary."""
    remat: Literal["none", "full", "dots"] = "full"
    """What the backward pass recomputes: nothing, every layer, or all but the matrix products."""
    checkpoint_every: Count = 50
    """Steps between checkpoints."""
    keep_checkpoints: Count = 2
    on_nan: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: stop at the last good checkpoint and name the examples, or leave that
    batch out, counted."""
    health_every: Annotated[int, Field(ge=0)] = 25
    """Steps between looks at the most likely words: overlap of the two top tens, share of the KL from outside the
    teacher's top 100. 0 is never."""
    tensorboard: bool = True
    wandb_project: str | None = None


class OwnAnswers(Sampling):
    """A student that learns from what it answers itself, step by step."""

    temperature: Positive = 1.0
    """Of sampling; log-probabilities are taken at the same temperature."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 is off. The filters are off by default: the ratio of policies assumes that the policy itself was sampled."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Fraction = 0.0
    repetition_penalty: Positive = 1.0
    group_size: Count = 4
    """Answers to a question."""
    batch_questions: Count = 4
    """Questions in a step; `batch_questions * group_size` answers."""
    epochs: Count = 1
    """How often each question is asked."""
    checkpoint_every: Count = 1
    """Steps between checkpoints."""


class Grpo(OwnAnswers):
    """Method `grpo`: the policy's answers are graded, and better ones than their group's mean become likelier. What the
    optimizer needs and is not named here (betas, weight_decay, max_grad_norm, remat, ...) is taken from `distillation`.
    """

    group_size: Annotated[int, Field(ge=2)] = 4
    updates: Count = 1
    """Optimizer updates on the same answers."""
    clip: NotNegative = 0.2
    """A token whose probability fell below 1 - clip of what it was when sampled is not made rarer still."""
    clip_high: NotNegative | None = None
    """One whose probability rose above 1 + clip_high is not made likelier still. None: the same as `clip`."""
    beta: NotNegative = 0.04
    """Weight of the estimated KL divergence from the base model (LoRA off)."""
    scale: Literal["group", "batch", "none"] = "group"
    """An advantage is divided by the standard deviation of its group's rewards, of the batch's, or not (Dr. GRPO)."""
    normalisation: Literal["sequence", "token", "constant"] = "sequence"
    """Mean of each answer's mean, mean over all tokens, or the sum over tokens divided by answers * max_new_tokens."""
    reinforce: Literal["all", "positive", "negative"] = "all"
    """Learn from all answers, or only from those better, or only from those worse than their group's mean."""
    format_reward: NotNegative = 0.0
    """Reward of an answer in a box, right or wrong; a right one has 1 more."""
    learning_rate: Positive = 1e-5
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0


class OnPolicy(OwnAnswers):
    """Method `on-policy`: the hinted teacher scores the student's own answers to the mixed questions. Loss, optimizer
    and its settings are those of `distillation`.
    """

    group_size: Count = 1
    teacher: Literal["base", "ema", "refreshed"] = "base"
    """The base model; a slow average of the student; or the student as it was at the last refresh."""
    teacher_rate: Fraction = 0.05
    """`ema`: the average moves by this share of the way to the student at each step."""
    teacher_every: Count = 50
    """`refreshed`: steps between refreshes."""


class Study(Section):
    """A grid of runs: every method with every number of questions and every seed."""

    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = ("ssb", "sft", "rft", "grpo")
    losses: tuple[str, ...] = ()
    """Losses of the method `ssb`, one run each. Empty: `distillation.loss` alone."""
    questions: Annotated[tuple[Count, ...], Field(min_length=1)]
    """The first so many questions, all of which a method may use."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    settings: dict[Method, dict[str, Any]] = {}
    """Settings of one method alone, such as `{grpo: {grpo.learning_rate: 1e-4}}`."""

    @model_validator(mode="after")
    def _cells_differ(self) -> "Study":
        for name in ("methods", "losses", "questions", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must differ, got {list(values)}")
        own = {"method", "seed", "rounds", "study", "questions.limit", "teaching.max_pairs"}
        own |= {"distillation.loss"} if self.losses else set()
        taken = [f"{method}: {key}" for method, found in self.settings.items() for key in found if key in own]
        if taken:
            raise ValueError(f"settings are of one method; the grid itself sets {', '.join(taken)}")
        return self


class EvaluationSet(Section):
    """One benchmark: questions, and how answers are drawn. A name of `benchmarks.py` brings both."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    data: Data
    sampling: Sampling = Sampling(temperature=0.0)
    num_samples: Count = 1
    """n samples a question; pass@1 is their mean."""

    _named = model_validator(mode="before")(with_benchmark)


class Evaluation(Section):
    """Step 6: base and adapter on the same questions."""

    sets: tuple[EvaluationSet, ...] = ()
    pass_at: tuple[Count, ...] = (1,)
    """The k of pass@k; each must not exceed a set's num_samples to be reported."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    bootstrap: Annotated[int, Field(ge=100)] = 10_000
    """Resamples of the bootstrap."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Evaluation":
        names = [s.name for s in self.sets]
        if len(set(names)) != len(names):
            raise ValueError(f"the names of evaluation.sets must differ, got {names}")
        return self


class Mesh(Section):
    """How many devices each mesh axis has; one of them may be -1, the rest. `mesh: auto` is short for `rule: auto`."""

    rule: Literal["sizes", "auto"] = "sizes"
    """`auto`: the sizes follow from the model, the devices and the stage (model/mesh.py says how)."""
    data: int = 1
    """Copies of the model, each with a part of the batch."""
    fsdp: int = -1
    """Devices over which weights and batch are split."""
    tensor: int = 1
    """Devices over which heads, feed-forward and vocabulary are split."""

    @model_validator(mode="before")
    @classmethod
    def _auto_is_a_rule(cls, value: Any) -> Any:
        return {"rule": "auto"} if value == "auto" else value

    @model_validator(mode="after")
    def _sizes_or_auto(self) -> "Mesh":
        if self.rule == "auto" and (self.data, self.fsdp, self.tensor) != (1, -1, 1):
            raise ValueError("with rule auto the sizes are chosen; leave out data, fsdp and tensor, or the rule")
        return self


class Engine(Section):
    """The rollout engine. These change its speed, never its tokens."""

    slots: Count | None = None
    """Sequences decoded at once. None: chosen to fit the memory."""
    chunk: Count = 16
    """Tokens decoded between two looks at which sequences ended."""
    max_failed: Fraction = 0.1
    """Stop when more than this share of the sequences failed."""


class Config(Section):
    """All settings of a run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    method: Method = "ssb"
    """`ssb`; `ssb-torch`, the same by the published trainer in PyTorch; `sft`: cross-entropy on the hinted solutions;
    `rft`: cross-entropy on the base model's own right answers; `grpo` and `on-policy`: see there."""
    rounds: Count = 1
    """The student of a round, merged, is the base of the next."""
    model: Model
    questions: Data
    prompts: Prompts = Prompts()
    rollouts: Rollouts = Rollouts()
    grading: Grading = Grading()
    teaching: Teaching = Teaching()
    targets: Targets = Targets()
    lora: Lora = Lora()
    distillation: Distillation = Distillation()
    grpo: Grpo = Grpo()
    on_policy: OnPolicy = OnPolicy()
    evaluation: Evaluation = Evaluation()
    mesh: Mesh = Mesh()
    engine: Engine = Engine()
    study: Study | None = None
    compilation_cache: str | None = "~/.cache/ssb-jax/xla"
    """Folder of XLA's persistent compilation cache; None switches it off."""
