"""YAML file + dotted overrides -> `Config`; unknown keys and bad values are errors."""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from ssb_jax.config.errors import SsbError
from ssb_jax.config.tree import Config

_MOST_CHARACTERS, _MOST_NODES = 200_000, 10_000
_SECRET_NAME = re.compile("TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY", re.IGNORECASE)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies overrides such as `--lora.rank 8` or `--evaluation.sets.0.num_samples=4`.

    Raises:
      SsbError: the file is missing or not YAML, a key is unknown (with the nearest known one), a value is not valid.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise SsbError(f"no configuration file {path}; expected a YAML file such as configs/tiny.yaml")
    tree = read_yaml(path)
    if not OmegaConf.is_dict(tree):
        raise SsbError(f"{path}: expected settings as `key: value`, got {type(tree).__name__}")
    try:
        for key, value in _parse(overrides):
            OmegaConf.update(tree, key, value, merge=False)
        values = OmegaConf.to_container(tree, resolve=True)
    except (OmegaConfBaseException, YAMLError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise SsbError(f"settings of {path} and {list(overrides)}: {str(error).splitlines()[0]}") from None
    _refuse_secrets(values, source=str(path))
    return config_from_dict(values, source=str(path))


def _refuse_secrets(values: Any, *, source: str) -> None:
    """Settings are written to files and logs, so no token of the environment may get among them."""
    text = repr(values)
    for name, secret in os.environ.items():
        if _SECRET_NAME.search(name) and len(secret) >= 8 and secret in text:
            raise SsbError(
                f"{source}: a setting holds the value of the environment variable {name}; settings are written to "
                "files: take it out, libraries find it in the environment by themselves"
            )


def read_yaml(path: Path) -> Any:
    """A YAML file as OmegaConf holds it, its interpolations not resolved yet.

    Raises:
      SsbError: the file cannot be read, is not YAML, or is too large once its aliases are written out.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > _MOST_CHARACTERS or _written_out(yaml.compose(text, yaml.SafeLoader)) > _MOST_NODES:
            raise SsbError(f"{path} is too large for settings (at most {_MOST_NODES:,} values, aliases written out)")
        return OmegaConf.load(path)
    except RecursionError:
        raise SsbError(f"{path} cannot be read as YAML: nested too deeply") from None
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, OSError) as error:
        raise SsbError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None


def _written_out(root: yaml.Node | None) -> int:
    """How many values a document has when each alias is the copy that it stands for; endless ones are too many."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if isinstance(node, tuple | list):
            return sum(map(size, node))
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = _MOST_NODES  # stands while inside itself
            sizes[id(node)] = 1 + size(node.value)
        return min(sizes[id(node)], 2 * _MOST_NODES)

    return 0 if root is None else size(root)


def config_from_dict(values: Any, *, source: str = "settings") -> Config:
    """Validates a nested dict.

    Raises:
      SsbError: listing every unknown key and every value that is not valid.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [_explain(e) for e in error.errors()]
        raise SsbError(f"{source}: " + "; ".join(lines)) from None


def dump_config(config: Config) -> str:
    """The resolved settings as YAML; `load_config` of it gives an equal Config."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _parse(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """`["--a.b", "1", "--c.0.d=x"]` -> ("a.b", 1), ("c.0.d", "x"); values are YAML, numbers index lists."""
    pending = None
    for word in overrides:
        if pending is not None:
            yield pending, _value(pending, word)
            pending = None
        elif word.startswith("--") and len(word) > 2:
            key, equals, value = word[2:].partition("=")
            key = key.replace("-", "_")
            if equals:
                yield key, _value(key, value)
            else:
                pending = key
        else:
            raise SsbError(f"expected an override `--section.key value`, got {word!r}")
    if pending is not None:
        raise SsbError(f"the override --{pending} has no value")


def _value(key: str, text: str) -> Any:
    """A value of the command line, read as YAML; but `#` begins no comment there."""
    if re.search(r"(^|\s)#", text) and text[0] not in "\"'[{":
        return text
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise SsbError(
            f"--{key}: {text!r} cannot be read as YAML ({reason}); if it is text, put it in quotes of its own: "
            f"--{key} '\"...\"'"
        ) from None


def _explain(error: dict) -> str:
    """One validation error as `key: what is wrong`, with the nearest known key for an unknown one."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), _known_keys(error["loc"][:-1]), n=1, cutoff=0.5)
        return f"unknown setting {where}" + (f"; did you mean {near[0]}?" if near else "")
    if error["type"] == "missing":
        return f"{where} is required"
    message = error["msg"].removeprefix("Value error, ")
    got = f", got {error['input']!r}"
    if isinstance(error["input"], dict):  # a whole section says nothing
        got = ", got `key: value`; put text with a colon in quotes" if error["type"] == "string_type" else ""
    return f"{where}: {message[:1].lower()}{message[1:]}{got}"


def _known_keys(location: tuple) -> list[str]:
    """The field names of the section at a location such as ("evaluation", "sets", 0)."""
    section: Any = Config
    for part in location:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        inner = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        section = inner[0] if inner else annotation
    return list(section.model_fields)
