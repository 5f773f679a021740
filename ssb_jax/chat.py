"""Messages become token ids here and nowhere else: teacher, student and evaluation all go through `Chat`.

The tokenizer is the checkpoint's own tokenizer.json, loaded as it is: transformers' AutoTokenizer would put the
splitting rules of the architecture's class in place of the file's. Knows no model and no JAX.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from ssb_jax.config import Sampling, SsbError
from ssb_jax.records import parse_json


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template.

    Attributes:
      end_of_turn_id: the id that ends an assistant's turn, which `teach_stop` adds to a reply.
      stop_ids: every id at which generation stops (the end of turn and what generation_config.json names).
      pad_id: fills batches; never attended to.
    """

    tokenizer: PreTrainedTokenizerFast
    end_of_turn_id: int
    stop_ids: tuple[int, ...]
    pad_id: int

    def encode_prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Messages -> ids of the chat template's text, up to where the assistant's reply begins."""
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode_flat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The published scripts' student prompt: system and user texts joined by one space, no template."""
        text = " ".join(m["content"] for role in ("system", "user") for m in messages if m["role"] == role).strip()
        return self.tokenizer.encode(text, add_special_tokens=True)

    def encode_text(self, text: str) -> list[int]:
        """Plain text -> ids, no special tokens added."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        """Ids -> text; special tokens are left out unless asked for."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=not keep_special)

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id the tokenizer can give."""
        return max(self.tokenizer.get_vocab().values()) + 1


def load_chat(folder: str | Path, *, generation_folder: str | Path | None = None) -> Chat:
    """Loads tokenizer.json, tokenizer_config.json and the chat template of a checkpoint folder.

    Args:
      folder: holds the tokenizer.
      generation_folder: holds generation_config.json, when it is not the same folder.

    Raises:
      SsbError: no tokenizer.json, no chat template that works, or no end-of-turn token.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise SsbError(f"{folder}: expected a tokenizer.json; set model.tokenizer to a folder or hub id that has one")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the library raises Exception itself for a file that it cannot read
        raise SsbError(f"{folder}: the tokenizer cannot be read: {error}") from None
    if tokenizer.chat_template is None:
        raise SsbError(f"{folder}: the tokenizer has no chat template; use an instruct model's tokenizer")
    if tokenizer.eos_token_id is None:
        raise SsbError(f"{folder}: tokenizer_config.json names no eos_token, which must be the end-of-turn token")
    stops = [tokenizer.eos_token_id, *_eos_ids(generation_defaults(generation_folder or folder))]
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    chat = Chat(tokenizer, tokenizer.eos_token_id, tuple(dict.fromkeys(stops)), pad_id)
    try:
        chat.encode_prompt([{"role": "user", "content": "1 + 1"}])
    except Exception as error:  # a template is a program, and may raise anything
        raise SsbError(f"{folder}: the chat template does not work: {type(error).__name__}: {error}") from None
    return chat


def generation_defaults(folder: str | Path) -> dict:
    """The settings in a checkpoint's generation_config.json; empty when there is none.

    Raises:
      SsbError: the file is not JSON, or a setting in it that generation uses is not valid.
    """
    path = Path(folder) / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SsbError(f"{path}: expected JSON: {error}") from None
    if not isinstance(values, dict):
        raise SsbError(f"{path}: expected a JSON object, got {type(values).__name__}")
    eos = values.get("eos_token_id")
    if not (eos is None or type(eos) is int or (isinstance(eos, list) and all(type(i) is int for i in eos))):
        raise SsbError(f"{path}: eos_token_id must be a token id or a list of them, got {eos!r}")
    try:
        Sampling.model_validate({name: values.get(name) for name in Sampling.model_fields if name != "max_new_tokens"})
    except ValidationError as error:
        first = error.errors()[0]
        raise SsbError(f"{path}: {first['loc'][0]}: {first['msg'].lower()}, got {first['input']!r}") from None
    return values


def _eos_ids(generation: dict) -> list[int]:
    eos = generation.get("eos_token_id")
    return eos if isinstance(eos, list) else [] if eos is None else [eos]
