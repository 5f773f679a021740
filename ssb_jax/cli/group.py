"""The group of commands: how errors become one line, and how a command takes a run folder."""

import contextlib
import os
import re
from collections.abc import Iterator
from errno import EACCES, EDQUOT, EFBIG, EIO, ENOSPC, EPERM, EROFS
from pathlib import Path

import click
from safetensors import SafetensorError

from ssb_jax import __version__
from ssb_jax.artifacts import code_digest, owning, versions
from ssb_jax.config import Config, SsbError, load_config
from ssb_jax.console import be_quiet


class _Cli(click.Group):
    """Turns errors that a user can act on into one line and exit status 1."""

    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except SsbError as error:
            told = click.ClickException(str(error))
            told.exit_code = error.exit_status
            raise told from None
        except KeyboardInterrupt:
            raise click.ClickException("interrupted; what was written so far is kept") from None
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            trouble = _disk_trouble(error)
            if trouble is None:
                raise
            raise click.ClickException(
                f"{trouble}; what was written so far is kept: mend that and run the same command again"
            ) from None


def _disk_trouble(error: Exception) -> str | None:
    """What to say of a disk that is full or not writable; None for any other error.

    Libraries report it in types of their own (safetensors, tensorstore), so their text is looked at too.
    """
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EFBIG, EROFS, EACCES, EPERM, EIO):
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    text = str(error)
    return next((os.strerror(code) for code in (ENOSPC, EDQUOT, EFBIG, EROFS, EIO) if os.strerror(code) in text), None)


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ssb")
def main() -> None:
    """Semantic Soft Bootstrapping: a language model learns from its own hinted solutions.

    CONFIG is a YAML file (see configs/); any setting can be given as --section.key value.
    """


class LocalPath(click.Path):
    """A path of this machine. A URL is refused: as a path it would name a folder called `gs:`."""

    def __init__(self, **settings):
        super().__init__(path_type=Path, **settings)

    def convert(self, value, param, ctx):
        if re.match(r"\w+:/", os.fspath(value)):
            self.fail(
                f"expected a path on this machine, got the URL {value}; only a run's --out may be one", param, ctx
            )
        return super().convert(value, param, ctx)


class OutputFile(LocalPath):
    """A file to be written or replaced; its folder is made."""

    def __init__(self):
        super().__init__(dir_okay=False)

    def convert(self, value, param, ctx):
        path = super().convert(value, param, ctx)
        if path.exists() and not path.is_file():
            self.fail(f"expected a file, got {path}, which is there and is none", param, ctx)
        there = next(parent for parent in path.absolute().parents if parent.exists())
        if not there.is_dir():
            self.fail(f"expected a file in a folder, got {path}: {there} is a file", param, ctx)
        return path


OVERRIDES = "OVERRIDES change settings of CONFIG: --section.key VALUE or --section.key=VALUE, such as --lora.rank 8."


def in_run_folder(function):
    """Arguments of a command that works in a run folder."""
    function = click.argument("overrides", nargs=-1, type=click.UNPROCESSED)(function)
    function = click.option("--out", required=True, callback=place, help="The run's folder, or its URL.")(function)
    function = click.argument("config", type=LocalPath())(function)
    settings = {"ignore_unknown_options": True}
    return main.command(context_settings=settings, epilog=OVERRIDES)(function)


def place(context: click.Context, option: click.Parameter, value: str) -> Path | str:
    """What --out names: a folder, or a URL such as gs://bucket/run (ssb_jax/remote)."""
    if not value or re.match(r"\w+:/(?!/)", value):
        raise click.BadParameter(f"expected a folder, or a URL such as gs://bucket/run, got {value!r}")
    return value if "://" in value else Path(value)


def load_settings(config: Path, overrides: tuple[str, ...]) -> Config:
    """The settings of a command; what is wrong with them is bad usage."""
    try:
        return load_config(config, overrides)
    except SsbError as error:
        raise click.UsageError(str(error)) from None


@contextlib.contextmanager
def opened(config: Path, out: Path | str, overrides: tuple[str, ...], *, rounds: bool = False) -> Iterator:
    """Loads the settings, takes the run folder, and imports the rest only then: a typing error costs no second.

    Args:
      rounds: whether the command knows several rounds, of which each has a folder of its own.
    """
    settings = load_settings(config, overrides)
    if settings.rounds > 1 and not rounds:
        raise click.UsageError(
            f"rounds is {settings.rounds}, and this command works in one round's folder: give that round's config.yaml "
            f"and folder, such as {out}/rounds/01/config.yaml --out {out}/rounds/01, or use `ssb run`"
        )
    from ssb_jax import hosts

    identity = {"config": settings.model_dump(mode="json"), "versions": versions(), "code": code_digest()}
    with (
        hosts.stopping_on_sigterm(),
        contextlib.ExitStack() as lasting,
        hosts.joined(identity),
        contextlib.ExitStack() as stack,
    ):
        if not hosts.is_first():
            be_quiet()
        folder = _take(out, stack, lasting)
        use_compilation_cache(settings)
        from ssb_jax import pipeline
        from ssb_jax.workspace import Workspace

        run = pipeline.Run(folder, Workspace(settings))
        with pipeline.keeping_config(run):
            yield pipeline, run


def _take(out: Path | str, stack: contextlib.ExitStack, lasting: contextlib.ExitStack) -> Path:
    """The run's folder on this machine, which is this command's alone until the stacks end."""
    from ssb_jax import hosts

    if isinstance(out, Path):
        hosts.on_first(lambda: stack.enter_context(owning(out)))
        hosts.refuse_unseen(out)
        return out
    if hosts.count() > 1:
        return hosts.take_url(out, stack=stack, lasting=lasting)
    from ssb_jax.remote import mirrored

    return stack.enter_context(mirrored(out))


def use_compilation_cache(config: Config) -> None:
    import jax

    if config.compilation_cache is not None:
        place = config.compilation_cache
        place = place if "://" in place else str(Path(place).expanduser())  # JAX opens URLs itself
        jax.config.update("jax_compilation_cache_dir", place)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
