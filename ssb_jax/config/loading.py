"""YAML file + dotted overrides -> `Config`; unknown keys and bad values are errors."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from ssb_jax.config.errors import SsbError
from ssb_jax.config.tree import Config


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies overrides such as `--lora.rank 8` or `--evaluation.sets.0.num_samples=4`.

    Raises:
      SsbError: the file is missing or not YAML, a key is unknown (with the nearest known one), a value is not valid.
    """
    path = Path(path)
    try:
        tree = OmegaConf.load(path)
    except FileNotFoundError:
        raise SsbError(f"no configuration file {path}; expected a YAML file such as configs/tiny.yaml") from None
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise SsbError(f"{path} cannot be read as YAML: {error}") from None
    if not OmegaConf.is_dict(tree):
        raise SsbError(f"{path}: expected settings as `key: value`, got {type(tree).__name__}")
    try:
        for key, value in _parse(overrides):
            OmegaConf.update(tree, key, value, merge=False)
        values = OmegaConf.to_container(tree, resolve=True)
    except (OmegaConfBaseException, YAMLError, TypeError, ValueError, IndexError) as error:
        raise SsbError(f"settings of {path} and {list(overrides)}: {str(error).splitlines()[0]}") from None
    return config_from_dict(values, source=str(path))


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
            yield pending, _value(word)
            pending = None
        elif word.startswith("--") and len(word) > 2:
            key, equals, value = word[2:].partition("=")
            key = key.replace("-", "_")
            if equals:
                yield key, _value(value)
            else:
                pending = key
        else:
            raise SsbError(f"expected an override `--section.key value`, got {word!r}")
    if pending is not None:
        raise SsbError(f"the override --{pending} has no value")


def _value(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]


def _explain(error: dict) -> str:
    """One validation error as `key: what is wrong`, with the nearest known key for an unknown one."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), _known_keys(error["loc"][:-1]), n=1, cutoff=0.5)
        return f"unknown setting {where}" + (f"; did you mean {near[0]}?" if near else "")
    if error["type"] == "missing":
        return f"{where} is required"
    got = "" if isinstance(error["input"], dict) else f", got {error['input']!r}"  # a whole section says nothing
    return f"{where}: {error['msg'].removeprefix('Value error, ').lower()}{got}"


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
