"""Questions and hints become chat messages here. The texts are the files of this folder, each replaceable by a path.

Templates are Jinja text: `{{ question }}`, and for the hinted prompt `{{ correct }}` and `{{ incorrect }}`. Values are
inserted as they are and never expanded again, so a model's output cannot reach into the template. Knows no tokens.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import jinja2
import jinja2.meta
import jinja2.sandbox
import pydantic
from omegaconf import OmegaConf

from ssb_jax.config import Prompts, SsbError, read_yaml

_ENVIRONMENT = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)

Message = dict[str, str]


class Example(pydantic.BaseModel):
    """A worked turn: `solution` answers `question`; with both attempts it can be shown under the hinted prompt too."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    question: str
    solution: str
    correct: str | None = None
    incorrect: str | None = None

    @pydantic.model_validator(mode="after")
    def _both_attempts_or_none(self) -> "Example":
        if (self.correct is None) != (self.incorrect is None):
            raise ValueError("an example has both `correct` and `incorrect`, or neither")
        return self


@dataclass(frozen=True)
class PromptSet:
    """The loaded templates. `system` None sends no system message."""

    system: str | None
    question: jinja2.Template
    hinted: jinja2.Template
    examples: tuple[Example, ...]

    def student_messages(self, question: str) -> list[Message]:
        """The bare question, after the system message and the worked turns."""
        turns = [(self.question.render(question=e.question), e.solution) for e in self.examples]
        return self._conversation(turns, self.question.render(question=question))

    def teacher_messages(self, question: str, correct: str, incorrect: str) -> list[Message]:
        """The question with its hints, after the system message and the worked turns (hinted where they can be)."""
        turns = [(self._example_prompt(e), e.solution) for e in self.examples]
        return self._conversation(turns, self.hinted.render(question=question, correct=correct, incorrect=incorrect))

    def _example_prompt(self, example: Example) -> str:
        if example.correct is None:
            return self.question.render(question=example.question)
        return self.hinted.render(question=example.question, correct=example.correct, incorrect=example.incorrect)

    def _conversation(self, turns: list[tuple[str, str]], prompt: str) -> list[Message]:
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for user, assistant in turns:
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return [*messages, {"role": "user", "content": prompt}]


def load_prompts(settings: Prompts) -> PromptSet:
    """Reads the templates that the settings name.

    Raises:
      SsbError: a file is missing, is not a Jinja text, lacks a variable it must show or asks for one there is not.
    """
    system = None if settings.system == "none" else _template("system", settings.system, set()).render()
    return PromptSet(
        system=system,
        question=_template("question", settings.question, {"question"}),
        hinted=_template("hinted", settings.hinted, {"question", "correct", "incorrect"}),
        examples=_load_examples(settings.examples),
    )


def prompt_texts(settings: Prompts) -> dict[str, str]:
    """The text behind each setting, so that a run's fingerprint follows the content and not the file name."""
    names = {"system": settings.system, "question": settings.question, "hinted": settings.hinted}
    texts = {key: _read(key, name) for key, name in names.items() if not (key == "system" and name == "none")}
    if settings.examples is not None:
        texts["examples"] = repr(_load_examples(settings.examples))
    return texts


def _read(setting: str, name: str) -> str:
    path = _path(name, ".txt")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(p.stem for p in Path(__file__).parent.glob("*.txt")))
        raise SsbError(f"prompts.{setting}: expected one of {known}, or a text file; got {name!r} ({error})") from None


def _path(name: str, ending: str) -> Path:
    """A file of the package by its name, or one of the user's."""
    packaged = Path(__file__).parent / f"{name}{ending}"
    return packaged if "/" not in name and os.path.isfile(packaged) else Path(name).expanduser()


def _template(setting: str, name: str, variables: set[str]) -> jinja2.Template:
    text = _read(setting, name)
    try:
        found = jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
        template = _ENVIRONMENT.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise SsbError(f"prompts.{setting} ({name}), line {error.lineno}: {error.message}") from None
    except RecursionError:
        raise SsbError(f"prompts.{setting} ({name}): nested too deeply") from None
    if found != variables:
        expected = ", ".join(f"{{{{ {v} }}}}" for v in sorted(variables)) or "no variable"
        raise SsbError(f"prompts.{setting} ({name}): expected {expected}, found {', '.join(sorted(found)) or 'none'}")
    try:
        template.render(dict.fromkeys(variables, "1 + 1"))
    except Exception as error:  # a template is a program, and may raise anything
        raise SsbError(f"prompts.{setting} ({name}) does not work: {type(error).__name__}: {error}") from None
    return template


def _load_examples(path: str | None) -> tuple[Example, ...]:
    if path is None:
        return ()
    file = _path(path, ".yaml")
    try:
        rows = OmegaConf.to_container(read_yaml(file))
        return tuple(pydantic.TypeAdapter(list[Example]).validate_python(rows))
    except SsbError as error:
        raise SsbError(f"prompts.examples: {error}") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SsbError(
            f"prompts.examples ({file}): expected a list of turns with question and solution (and correct with "
            f"incorrect); {where}: {first['msg']}"
        ) from None
