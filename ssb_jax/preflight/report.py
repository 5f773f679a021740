"""All that preflight finds: compiled stage by stage, as one JSON object and as tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ssb_jax.config import SsbError
from ssb_jax.console import note, table
from ssb_jax.model.transformer import count_parameters
from ssb_jax.preflight.chips import GIB
from ssb_jax.preflight.compiled import Compiled, compile_program, estimated
from ssb_jax.preflight.estimate import SAFE
from ssb_jax.preflight.job import Job, abstract, make_job
from ssb_jax.preflight.programs import stage_programs
from ssb_jax.preflight.roofline import Step, stage_steps

_HELD = ("weights", "cache", "optimizer")


def preflight(job: Job, *, stages: Sequence[str], source: str = "", compiling: bool = True) -> dict[str, Any]:
    """Compiles the programs of some stages and adds up what the run needs; a JSON-able dict.

    A program that does not fit is a result, not an error.

    Args:
      compiling: False: memory by estimate too, for which `SAFE` of a chip's memory counts.
    """
    chip = job.topology.chip
    given = (job.config, job.shape, job.topology, job.assumed)
    results = {stage: _stage(make_job(*given, stage=stage), stage, compiling=compiling) for stage in stages}
    hours = [result["hours"] for result in results.values()]
    known = all(h is not None for h in hours)
    return {
        "topology": job.topology.name,
        "chips": len(job.topology.devices),
        "hosts": len({device.process_index for device in job.topology.devices}),
        "chip": dataclasses.asdict(chip),
        "mesh": dict(job.mesh.shape),  # of the first stage; see the stages for theirs
        "model": {
            "shape": source,
            "parameters": count_parameters(abstract(job.shape, job.dtype)),
            "dtype": job.dtype.name,
        },
        "assumed": dataclasses.asdict(job.assumed),
        "compiled": compiling,
        "stages": results,
        "fits": all(result["fits"] for result in results.values()),
        "hours": sum(hours) if known else None,
        "chip_hours": sum(hours) * len(job.topology.devices) if known else None,
    }


def _stage(job: Job, stage: str, *, compiling: bool) -> dict[str, Any]:
    memory = job.topology.chip.memory
    limit, mesh = memory if compiling else int(SAFE * memory), dict(job.mesh.shape)
    try:
        programs, steps = stage_programs(job, stage), stage_steps(job, stage)
    except SsbError as error:
        return {"mesh": mesh, "fits": False, "reason": str(error), "programs": [], "steps": [], "hours": None}
    compiled = []
    for program in programs:
        compiled.append(compile_program(program) if compiling else estimated(program))
        if compiling:
            done = compiled[-1]
            note(f"{stage}: {program.name}: {done.total / GIB:.2f} GiB a chip, compiled in {done.seconds:.0f} s")
    peak = max((c.total for c in compiled), default=0)
    hours = [step.hours for step in steps]
    return {
        "mesh": mesh,
        "fits": peak <= limit,
        "reason": "" if peak <= limit else f"{(peak - limit) / GIB:.2f} GiB a chip too much",
        "peak_bytes": peak,
        "spare_bytes": limit - peak,
        "programs": [_program(c, memory) for c in compiled],
        "steps": [_step(step) for step in steps],
        "hours": None if None in hours else sum(hours),
    }


def _program(done: Compiled, memory: int) -> dict[str, Any]:
    parts = dict.fromkeys(_HELD, 0) | {"other": done.inputs}
    for kinds in (done.program.held, done.program.beside):
        for kind, size in kinds.items():
            parts[kind if kind in _HELD else "other"] += size
    return {
        "name": done.program.name,
        **{f"{kind}_bytes": size for kind, size in parts.items()},
        "temporary_bytes": done.temporaries,
        "estimated_temporary_bytes": int(done.program.temporaries),
        "total_bytes": done.total,
        "share": round(done.total / memory, 4),
        "refused_by_compiler": done.refused,
        "compile_seconds": round(done.seconds, 1),
        "compile_processor_seconds": round(done.processor, 1),
        "collectives": dataclasses.asdict(done.collectives),
    }


def _step(step: Step) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(step).items() if key != "stage"} | {"hours": step.hours}


def show(report: dict[str, Any]) -> None:
    """Prints the report as tables, with the verdict last."""
    chip = report["chip"]
    programs = [(stage, p) for stage, result in report["stages"].items() for p in result["programs"]]
    largest = max((p["total_bytes"] for _, p in programs), default=0)
    unit, size = ("GiB", GIB) if largest > GIB else ("MiB", 2**20)
    table(
        f"{report['model']['shape']}, {report['model']['dtype']}, on {report['topology']}: {report['chips']} chips of "
        f"{chip['memory'] / size:,.2f} {unit}; mesh {_sizes(report['mesh'])}",
        (f"{unit} a chip", *_HELD, "other", "temporary", "total", "share", "compile"),
        [_memory_row(stage, p, size) for stage, p in programs],
    )
    steps = [(stage, s) for stage, result in report["stages"].items() for s in result["steps"]]
    table(
        "Time at least, from operations and bytes of a chip, counted from shapes at the expected lengths",
        ("step", "times", "TFLOP", "HBM GB", "links GB", "ms", "bound by", "hours"),
        [_time_row(stage, s) for stage, s in steps],
    )
    if report["compiled"]:
        print("Received from other chips in one call, in MB (a decode chunk counts as one step):")
        for stage, p in programs:
            print(f"  {stage}: {p['name']}: {_collectives(p['collectives'])}")
    else:
        print(f"Not compiled: temporaries are estimates, and {100 * SAFE:.0f} % of a chip's memory may be used.")
    assumed = ", ".join(f"{key} {value}" for key, value in report["assumed"].items() if value is not None)
    print(f"Assumed: {assumed}. Memory is for the longest sequences that the settings and longest_answer allow.")
    if report["hosts"] > 1:
        print(
            f"{report['hosts']} hosts: each answers its share on its own chips; the student is trained on all of them."
        )
    for stage, result in report["stages"].items():
        spare = f"{result['spare_bytes'] / size:,.2f} {unit} a chip to spare" if result["fits"] else result["reason"]
        own = "" if result["mesh"] == report["mesh"] else f" on mesh {_sizes(result['mesh'])}"
        print(f"{stage}: {'fits' if result['fits'] else 'DOES NOT FIT'}{own}: {spare}")
    if report["hours"] is not None:
        print(f"At least {report['hours']:.2f} hours, {report['chip_hours']:.2f} chip-hours.")
    how = "" if report["compiled"] else ", by estimate"
    print(f"Verdict: {'fits' if report['fits'] else 'does not fit'} {report['topology']}{how}.")


def _sizes(mesh: dict[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in mesh.items())


def _memory_row(stage: str, p: dict[str, Any], size: int) -> tuple:
    sizes = [f"{p[f'{kind}_bytes'] / size:,.2f}" for kind in (*_HELD, "other", "temporary", "total")]
    compiling = f"{p['compile_seconds']:.0f} s" if p["compile_seconds"] else "not"
    return f"{stage}: {p['name']}", *sizes, f"{100 * p['share']:.0f} %", compiling


def _collectives(own: dict[str, Any]) -> str:
    if own["unread"]:
        return f"not known ({own['unread']})"
    kinds = ", ".join(f"{own['counts'][kind]} {kind} {size / 1e6:.1f}" for kind, size in own["bytes"].items())
    loops = f"; {own['open_loops']} loop(s) of unknown length counted once" if own["open_loops"] else ""
    return (kinds or "none") + loops


def _time_row(stage: str, s: dict[str, Any]) -> tuple:
    ms, hours = ("?", "?") if s["seconds"] is None else (f"{1e3 * s['seconds']:.2f}", f"{s['hours']:.3f}")
    counted = (f"{s['flops'] / 1e12:.3f}", f"{s['memory'] / 1e9:.3f}", f"{s['links'] / 1e9:.3f}")
    return f"{stage}: {s['name']}", s["count"], *counted, ms, s["bound"] or "?", hours
