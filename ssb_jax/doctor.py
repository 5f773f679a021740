"""Checks before anything expensive: `ssb doctor`.

Each check is a function of what is known before a run: settings, tokenizer, prompts, questions, devices, disk. It
returns what it found; an SsbError in it is a failed check. No weights are read, and no device computes.
"""

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

import huggingface_hub
import jax
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from packaging.requirements import Requirement

from ssb_jax.chat import Chat, generation_defaults, load_chat
from ssb_jax.config import Config, SsbError
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.lora import lora_shapes
from ssb_jax.model.mesh import GENERATION, TRAINING, mesh_for
from ssb_jax.model.transformer import check_mesh
from ssb_jax.model.weights import BUILTIN_TINY, read_config, resolve_model
from ssb_jax.prompts import PromptSet, load_prompts
from ssb_jax.records import Question, normalise
from ssb_jax.stages.questions import load_questions

_SMALL_FILES = ["*.json", "*.txt", "*.jinja"]  # of a model on the hub: everything but its weights
_QUESTION = "What is (3 + 4) \\times 2?"
_REPLY = "First, 3 + 4 = 7.\n\nThen 7 \\times 2 = 14, so the answer is \\boxed{14}."
_EXPECTED_REPLY = 320  # tokens: the middle of the published run's replies
_SAMPLED = 200  # questions whose tokens are looked at one by one


class Status(StrEnum):
    """What a check says."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """A check's name, its result and the reason, in a line."""

    check: str
    status: Status
    detail: str


Result = tuple[Status, str]


@dataclass(frozen=True)
class Patient:
    """The settings and what is loaded from them, each when a check first asks."""

    config: Config
    place: Path | str  # a folder, or the URL of one

    @cached_property
    def out(self) -> Path:
        """The folder of this machine in which the run works."""
        if isinstance(self.place, Path):
            return self.place
        from ssb_jax.remote import working_folder

        return working_folder(self.place)

    @cached_property
    def model_folder(self) -> Path:
        return _small_files(self.config.model.path, self.config.model.revision)

    @cached_property
    def shape(self) -> ModelConfig:
        return read_config(self.model_folder)

    @cached_property
    def chat(self) -> Chat:
        name = self.config.model.tokenizer
        folder = self.model_folder if name is None else _small_files(name, None)
        return load_chat(folder, generation_folder=self.model_folder)

    @cached_property
    def prompts(self) -> PromptSet:
        return load_prompts(self.config.prompts)

    @cached_property
    def questions(self) -> list[Question]:
        return load_questions(self.config.questions)[0]

    @cached_property
    def prompt_lengths(self) -> list[int]:
        return [len(self.chat.encode_prompt(self.prompts.student_messages(q.question))) for q in self.questions]


def examine(config: Config, *, out: Path | str) -> list[Finding]:
    """All checks, in order; one that fails does not keep the others from being made."""
    patient, findings, failed = Patient(config, out), [], set()
    for name, (check, needs) in CHECKS.items():
        missing = [need for need in needs if need in failed]
        try:
            result = (Status.FAIL, f"not checked, because of {', '.join(missing)}") if missing else check(patient)
        except SsbError as error:
            result = Status.FAIL, str(error)
        if result[0] is Status.FAIL:
            failed.add(name)
        findings.append(Finding(name, *result))
    return findings


def _versions(patient: Patient) -> Result:
    """The installed packages against what the package asks for."""
    wanted = [Requirement(text) for text in importlib.metadata.requires("ssb-jax") or ()]
    wrong, seen = [], []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        seen.append((requirement.name, version))
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version}, expected {requirement.specifier}")
    named = ", ".join(f"{name} {version}" for name, version in seen if name in ("jax", "flax", "transformers"))
    return (Status.FAIL, "; ".join(wrong)) if wrong else (Status.OK, f"{len(seen)} packages fit: {named}")


def _model(patient: Patient) -> Result:
    """Its config.json describes a network that we implement."""
    shape = patient.shape
    return Status.OK, f"{patient.model_folder}: {shape.num_layers} layers, width {shape.hidden_size}"


def _devices(patient: Patient) -> Result:
    """The meshes of the settings over the devices that are here."""
    devices, config = jax.devices(), patient.config
    itemsize = 4 if devices[0].platform == "cpu" or config.model.dtype == "float32" else 2
    sizes = []
    for stage in (GENERATION, TRAINING):
        rows = config.distillation.batch_size
        mesh = mesh_for(config.mesh, patient.shape, itemsize=itemsize, stage=stage, rows=rows)
        check_mesh(patient.shape, mesh)
        sizes.append(", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()))
    detail = f"{len(devices)} x {devices[0].device_kind} on {jax.process_count()} process(es): mesh {sizes[0]}"
    detail += "" if sizes[0] == sizes[1] else f"; for training {sizes[1]}"
    large = patient.shape.num_layers * sum(i * o for i, o in lora_shapes(patient.shape).values()) > 1e9
    if devices[0].platform == "cpu" and large:
        return Status.WARN, f"{detail}; a model of this size needs an accelerator"
    return Status.OK, detail


def _tokenizer(patient: Patient) -> Result:
    """Every id that the tokenizer gives, and every stop id, has an embedding."""
    have, need = patient.shape.vocab_size, patient.chat.vocabulary_size
    outside = [i for i in patient.chat.stop_ids if i >= have]
    if need > have or outside:
        what = f"stop ids {outside}" if outside else f"ids up to {need - 1:,}"
        return Status.FAIL, f"it gives {what}, the model embeds {have:,}; set model.tokenizer to the model's own"
    return Status.OK, f"ids below {need:,}, the model embeds {have:,}; stops at {list(patient.chat.stop_ids)}"


def _template(patient: Patient) -> Result:
    """The chat template shows the question whole and opens the assistant's turn."""
    messages = patient.prompts.student_messages(_QUESTION)
    text = patient.chat.decode(patient.chat.encode_prompt(messages), keep_special=True)
    lost = [m["role"] for m in messages if m["content"].strip() not in text]
    if lost:
        return Status.FAIL, f"the template does not show the text of {', '.join(lost)} as it is; use another template"
    closed = patient.chat.tokenizer.apply_chat_template(messages, tokenize=False)
    opened = patient.chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if opened == closed:
        return Status.WARN, "it ignores add_generation_prompt: the model must open its own turn"
    return Status.OK, f"{len(messages)} messages, then {opened.removeprefix(closed)!r}"


def _stop(patient: Patient) -> Result:
    """The token that ends a turn in the template is the one that the student is taught."""
    chat = patient.chat
    prompt, whole = _turn(patient)
    end = chat.tokenizer.convert_ids_to_tokens(chat.end_of_turn_id)
    rest = whole.removeprefix(prompt).removeprefix(_REPLY)
    if not rest.startswith(end):
        return Status.FAIL, (
            f"a turn ends with {rest[:20]!r} in the template, but the tokenizer's eos_token is {end!r}; generation "
            "would not stop there: correct eos_token in tokenizer_config.json"
        )
    if patient.config.prompts.teach_stop:
        return Status.OK, f"{end!r} ends a turn, stops generation, and is taught"
    return Status.WARN, f"{end!r} ends a turn but prompts.teach_stop is false: the student is not taught to stop"


def _retokenising(patient: Patient) -> Result:
    """Prompt ids + reply ids are the ids of the whole conversation's text."""
    chat = patient.chat
    prompt, whole = _turn(patient)
    apart = [*chat.encode_text(prompt), *chat.encode_text(_REPLY)]
    together = chat.encode_text(whole)[: len(apart)]
    changed = next((i for i, (a, b) in enumerate(zip(apart, together, strict=False)) if a != b), None)
    texts = [_REPLY, *(q.question for q in patient.questions[:_SAMPLED])]
    lossy = sum(chat.decode(chat.encode_text(text)) != text for text in texts)
    if changed is None and not lossy:
        return Status.OK, f"prompt and reply keep their ids side by side; {len(texts)} texts come back as they were"
    problems = []
    if changed is not None:
        problems.append(f"the ids of prompt and reply merge at token {changed}")
    if lossy:
        problems.append(f"{lossy} of {len(texts)} texts change when encoded and decoded")
    return Status.WARN, "; ".join(problems) + "; training uses the sampled ids, so only outside tools are affected"


def _questions(patient: Patient) -> Result:
    """The questions load, and none of them is asked in an evaluation."""
    texts = {normalise(q.question) for q in patient.questions}
    counts = [f"{len(patient.questions):,} to learn from"]
    shared = []
    for evaluation_set in patient.config.evaluation.sets:
        members = load_questions(evaluation_set.data)[0]
        counts.append(f"{evaluation_set.name} {len(members):,}")
        both = sum(normalise(q.question) in texts for q in members)
        if both:
            shared.append(f"{both} of {evaluation_set.name} are also learned from")
    if shared:
        return Status.WARN, f"{', '.join(counts)}; {'; '.join(shared)}: their accuracy says nothing"
    return Status.OK, ", ".join(counts)


def _truncation(patient: Patient) -> Result:
    """How many prompts do not fit, leave less room than max_new_tokens, or are cut in training."""
    context, lengths = patient.shape.max_position_embeddings, patient.prompt_lengths
    limit, room = patient.config.distillation.max_length, patient.config.rollouts.max_new_tokens
    full = sum(n >= context for n in lengths)
    tight = sum(context > n > context - room for n in lengths)
    cut = sum(n >= limit for n in lengths)
    longest = f"prompts of {min(lengths)} to {max(lengths)} tokens, context {context:,}"
    if full:
        return Status.FAIL, f"{full} of {len(lengths)} fill the context; {longest}: shorten or leave them out"
    if tight or cut:
        return Status.WARN, (
            f"{tight} of {len(lengths)} leave less than rollouts.max_new_tokens ({room:,}) for the answer, "
            f"{cut} are cut to distillation.max_length ({limit:,}); {longest}"
        )
    hinted = max(lengths) + 2 * room
    if hinted > context:
        return Status.WARN, f"{longest}; a hinted prompt may reach {hinted:,} and is then dropped"
    return Status.OK, longest


def _defaults(patient: Patient) -> Result:
    """What generation settings come from the model, because the configuration leaves them open."""
    found = generation_defaults(patient.model_folder)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    sections = {"rollouts": patient.config.rollouts, "teaching": patient.config.teaching} | {
        f"evaluation {s.name}": s.sampling for s in patient.config.evaluation.sets
    }
    taken = [
        f"{section}: {', '.join(given)}"
        for section, settings in sections.items()
        if (given := [f"{n} {found[n]}" for n in names if getattr(settings, n) is None and found.get(n) is not None])
    ]
    penalty = found.get("repetition_penalty", 1.0)
    greedy = [s.name for s in patient.config.evaluation.sets if s.sampling.repetition_penalty is None]
    if penalty != 1.0 and greedy:
        return Status.WARN, f"the model's repetition penalty {penalty} is in force in evaluation of {', '.join(greedy)}"
    return Status.OK, "from generation_config.json: " + "; ".join(taken) if taken else "the configuration says all"


def _output(patient: Patient) -> Result:
    """The run folder, or the nearest folder above it that exists, takes a file; so does the bucket of a URL."""
    folder = _existing(patient.out)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Status.FAIL, f"{folder} cannot be written: {error.strerror}; choose another --out"
    if isinstance(patient.place, Path):
        begun, where = (patient.out / "config.yaml").exists(), ""
    else:
        from ssb_jax.remote import try_out

        begun, where = try_out(patient.place), f"; each host works in a folder of its own, here {patient.out}"
    return Status.OK, f"{patient.place} ({'continues what is there' if begun else 'new'}){where}"


def _disk(patient: Patient) -> Result:
    """Targets, checkpoints and answers against what is free."""
    config, shape = patient.config, patient.shape
    free = shutil.disk_usage(_existing(patient.out)).free
    width = shape.hidden_size if config.targets.encoding == "hidden" else shape.vocab_size
    item = 4 if config.targets.dtype == "float32" else 2
    pairs = config.teaching.max_pairs or len(patient.questions)
    expected = pairs * min(_EXPECTED_REPLY, config.teaching.max_new_tokens) * width * item
    most = pairs * config.teaching.max_new_tokens * width * item
    sizes = lora_shapes(shape)
    adapter = 4 * shape.num_layers * config.lora.rank * sum(sum(sizes[name]) for name in config.lora.target_modules)
    kept = (
        3 * adapter * (config.distillation.keep_checkpoints + 1) + adapter
    )  # with two moments each, one being written
    detail = (
        f"targets about {_size(expected)} (at most {_size(most)}), checkpoints {_size(kept)}; {_size(free)} free "
        f"under {_existing(patient.out)}"
    )
    if expected + kept > free:
        return Status.FAIL, f"{detail}: make room, or set targets.encoding hidden"
    return (Status.WARN if most + kept > free else Status.OK), detail


# What is checked, and which checks must not have failed before it.
CHECKS: dict[str, tuple[Callable[[Patient], Result], tuple[str, ...]]] = {
    "versions": (_versions, ()),
    "model": (_model, ()),
    "devices": (_devices, ("model",)),
    "tokenizer": (_tokenizer, ("model",)),
    "questions": (_questions, ()),
    "chat template": (_template, ("tokenizer",)),
    "end of turn": (_stop, ("tokenizer",)),
    "re-tokenising": (_retokenising, ("tokenizer", "questions")),
    "truncation": (_truncation, ("tokenizer", "questions")),
    "generation": (_defaults, ("model",)),
    "output": (_output, ()),
    "disk": (_disk, ("model", "questions")),
}


def show(findings: Sequence[Finding]) -> None:
    """One line a check, on stdout."""
    width = max(len(f.check) for f in findings)
    for finding in findings:
        print(f"{finding.status.value:<5} {finding.check:<{width}}  {finding.detail}")


def as_json(findings: Sequence[Finding]) -> str:
    """The findings as a JSON list."""
    return json.dumps([{"check": f.check, "status": f.status.value, "detail": f.detail} for f in findings], indent=1)


def _turn(patient: Patient) -> tuple[str, str]:
    """The text of a prompt up to the reply, and of the conversation with it."""
    messages = patient.prompts.student_messages(_QUESTION)
    apply = patient.chat.tokenizer.apply_chat_template
    prompt = apply(messages, tokenize=False, add_generation_prompt=True)
    return prompt, apply([*messages, {"role": "assistant", "content": _REPLY}], tokenize=False)


def _small_files(name: str, revision: str | None) -> Path:
    """The folder of a model without its weights."""
    if name == BUILTIN_TINY or Path(name).expanduser().is_dir() or name.count("/") != 1:
        return resolve_model(name, revision)
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_SMALL_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SsbError(f"model {name!r}: no such folder, and the hub did not give its tokenizer ({reason})") from None


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
