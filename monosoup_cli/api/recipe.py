"""`run`: the steps of a recipe, the command of a report, or a configuration of mergekit."""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from monosoup_cli.api.complete import another, check_doubts, refusal_of, to_make_anew
from monosoup_cli.api.mergekit import is_mergekit, step_of_mergekit
from monosoup_cli.api.progress import Watch, watched
from monosoup_cli.declaration import keywords_of, placeholders
from monosoup_cli.errors import (
    FLAG,
    CheckpointError,
    MonosoupError,
    OutputExistsError,
    ReportError,
    UsageError,
    crop,
    some,
)
from monosoup_cli.options import NO_BASE, PROGRAMS, ComputeOptions, OutputOptions, StrPath, declared_in
from monosoup_cli.tensors.patterns import LAYERS
from monosoup_cli.values import as_list, check_keys, did_you_mean, nearest

if TYPE_CHECKING:
    from monosoup_cli.api.command import WritingCommand
    from monosoup_cli.pipeline.planned import Planned
    from monosoup_cli.pipeline.task import Task

__all__ = ["OF_THE_RUN", "Step", "read_steps", "run"]

OF_THE_RUN = {**declared_in(ComputeOptions), **declared_in(OutputOptions)}
"""The options that say how steps run, and not what they compute. A recipe has none of them."""
TAKEN = [name for name in OF_THE_RUN if name != "part"]
"""Those that `run` takes."""
OF_THE_SHELL = ("dry_run", "format", "quiet", "no_progress")
"""Those that `monosoup run` has beside them."""
KEYS = ("command", "steps", "merge_method")
"""A recipe has one of them."""
OF_LAST = ("report", "push", "public")
"""The options that are for the last step alone."""


@dataclass(frozen=True)
class Step:
    """A call of a command.

    Attributes:
        command: The command.
        arguments: Its arguments, without those of the run.
        prepare: Takes options of the run, and opens the inputs.
        is_of_mergekit: Whether a configuration of mergekit became this step.
    """

    command: WritingCommand[...]
    arguments: Mapping[str, Any]
    prepare: Callable[..., Planned]
    is_of_mergekit: bool = False

    @property
    def task(self) -> Task:
        """What it asks for."""
        return self.command.task(**self.arguments)

    @property
    def command_line(self) -> str:
        """The shell command that does the same."""
        from monosoup_cli.pipeline.task import command_line

        return command_line(self.task)

    @property
    def output(self) -> str:
        """Where its output goes."""
        return str(self.arguments["output"])


def run(
    recipe: StrPath, output: StrPath | None = None, *, progress: Watch = None, **options: Any
) -> list[dict[str, Any]]:
    """Run the steps of a recipe, one after the other; or the command of a report again.

    Args:
        recipe: A recipe, a configuration of mergekit (both YAML), a report, or the output that has one.
        output: Where the output of the last step goes; None for where the recipe says.
        progress: A class of progress bars, such as tqdm; or a function as other commands take it.
        **options: How it runs: `device`, `workers`, `overwrite`, `resume`, `strict`, and for the last step
            `report`, `push` and `public`. With `resume`, steps whose outputs are complete are not run again.

    Returns:
        The report of every step that ran.

    Raises:
        monosoup_cli.errors.MonosoupError: The recipe cannot be read, or a step fails.
    """
    from monosoup_cli.api.command import execute_by_engine, passes_over
    from monosoup_cli.pipeline.ready import make_ready
    from monosoup_cli.pipeline.scoring import ignore_scores

    reports = []
    for step, own in waiting(read_steps(recipe, output), options):
        with step.prepare(**own) as planned:
            ready = make_ready(planned)
            with watched(progress, passes_over(ready), step.command.__name__) as moved:
                reports.append(execute_by_engine(ready, moved, ignore_scores))
            if planned.destination.options.push is not None:
                planned.destination.push(planned.task.call)
    return reports


run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *(one for one in inspect.signature(run).parameters.values() if one.kind is not one.VAR_KEYWORD),
        *(OF_THE_RUN[name].parameter for name in TAKEN),
    ],
    return_annotation="list[dict[str, Any]]",
)


def waiting(
    steps: Sequence[Step], options: Mapping[str, Any], note: Callable[[str], object] = lambda text: None
) -> Iterator[tuple[Step, dict[str, Any]]]:
    """The steps that have to run, each with its options of the run.

    Args:
        steps: All of them.
        options: What the user said of the run.
        note: Is told of the steps that are done.

    Raises:
        OutputExistsError: The output of one is there, and is not to be replaced.
    """
    from monosoup_cli.outputs.workplace import partial_path

    resumes, last = options.get("resume"), steps[-1]
    asks_more = any(options.get(name) for name in OF_LAST)
    computing = {name: options[name] for name in ("device", "workers") if name in options}
    left, fault = [*steps], None
    while left and resumes:
        fault = refusal_of(left[0].task)
        if fault is not None or (asks_more and left[0] is last):
            break
        done = left.pop(0)
        if options.get("strict"):
            check_doubts(done.output, partial(done.prepare, overwrite=True, **computing))
        note(f"{done.output} is complete, so {done.command.__name__} is not run again")
    if not options.get("overwrite"):
        _check_free(left, fault, resumes=bool(resumes), asks_more=asks_more)
    elif fault is not None and os.path.lexists(left[0].output):
        note(f"{left[0].output}: {fault.problem}, so {left[0].command.__name__} is run again")
    for step in left:
        own = {name: value for name, value in options.items() if step is last or name not in OF_LAST}
        if resumes and not os.path.lexists(partial_path(Path(step.output))):
            own["resume"] = step is last and asks_more and os.path.lexists(step.output)  # or nothing is there
        yield step, own


def _check_free(
    steps: Sequence[Step], fault: OutputExistsError | None, *, resumes: bool, asks_more: bool
) -> None:
    """Refuse outputs of later steps that are there; with `resumes`, that of the first, for its fault."""
    from monosoup_cli.outputs.output_path import check_output_path
    from monosoup_cli.outputs.workplace import partial_path

    there = [step.output for step in steps if os.path.lexists(step.output)]
    begun = [one for one in there if os.path.lexists(partial_path(Path(one)))]
    if not resumes and len(there) > 1 and not begun:
        others = some([crop(one) for one in there[1:]], 4)
        raise OutputExistsError(
            f"the output already exists, and so {'does' if len(there) == 2 else 'do'} {others}",
            path=there[0],
            hint="give others in the recipe, or pass --overwrite",
        )
    for number, step in enumerate(steps):
        if step.output not in there:
            continue
        is_final = asks_more and len(steps) == 1 and fault is None
        if resumes and step.output not in begun and not is_final:
            if number:
                gone = next((one.output for one in steps[:number] if one.output not in there), None)
                raise to_make_anew(
                    f"the output is there, but {crop(gone or steps[0].output)}, that of an earlier step, is"
                    f" {'gone' if gone else 'not complete'}",
                    step.output,
                )
            raise fault or another(step.output)
        if number:
            check_output_path(Path(step.output), [], overwrite=False, resume=False)


def read_steps(recipe: StrPath, output: StrPath | None = None) -> list[Step]:
    """The steps of a recipe, a configuration of mergekit, or a report.

    Raises:
        MonosoupError: It is none of them, or asks for what a recipe may not.
    """
    from monosoup_cli.api.recipe_file import read_recipe_file

    path = Path(recipe)
    if path.is_dir() or path.suffix in (".json", ".safetensors"):
        return [_of_report(path, output)]
    content = read_recipe_file(path)
    try:
        if is_mergekit(content):
            if output is None:
                raise UsageError(
                    "mergekit's configurations do not say where the output goes", hint="add -o OUT"
                )
            return [_step({**step_of_mergekit(content), "output": output}, is_of_mergekit=True)]
        is_several = "steps" in content and "command" not in content  # soup has an option of that name
        found = content["steps"] if is_several else [content]
        if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
            raise UsageError("steps must be a list, each with command, its inputs, output and options")
        if is_several:
            _check_of_the_run(content)
            check_keys("a recipe has no", content, {"steps"}, expected="steps alone")
        for one in found if output is None else found[:-1]:
            _check_output(one.get("output"))
        if output is not None:
            found = [*found[:-1], {**found[-1], "output": output}]
        steps = _checked(found)
    except UsageError as error:
        error.path = error.path or str(path)
        raise
    _check_inputs(steps)
    return steps


def _checked(found: Sequence[Mapping[str, Any]]) -> list[Step]:
    """The steps of a recipe, whose arguments are checked before the first step runs.

    Raises:
        UsageError: One cannot run with them, or has the output of another.
    """
    steps: list[Step] = []
    for number, content in enumerate(found, start=1):
        try:
            step = _step(content)
            places = [os.path.normpath(one.output) for one in steps]
            if os.path.normpath(step.output) in places:
                raise UsageError("an earlier step has the same output", found=crop(repr(step.output)))
        except UsageError as error:
            if len(found) > 1:
                error.problem = f"step {number}: {error.problem}"
            raise
        steps.append(step)
    return steps


def _check_inputs(steps: Sequence[Step]) -> None:
    """Raise CheckpointError if an input is no path, no id on the Hub, and in no output of an earlier step."""
    from monosoup_cli.sources.locate import typed_id

    places = [PurePath(os.path.normpath(step.output)) for step in steps]
    for number, step in enumerate(steps, start=1):
        for role in ("base", "finetuned", "onto"):
            for source in map(os.fspath, as_list(step.arguments.get(role))):
                place = PurePath(os.path.normpath(source))
                around = {place, *place.parents}
                maker = next((one for one, output in enumerate(places, start=1) if output in around), number)
                if source == NO_BASE or os.path.lexists(source) or maker < number:
                    continue
                if maker > number:
                    raise CheckpointError(
                        f"is made by step {maker}, after step {number} needs it",
                        path=source,
                        hint=f"put step {maker} before step {number}",
                    )
                try:
                    typed_id(source)
                except CheckpointError as error:
                    if number > 1:
                        error.problem += f", and no step before step {number} makes it"
                    raise


def _check_output(output: Any) -> None:
    """Raise UsageError if a step's output may be outside of the folder in which the recipe runs."""
    place = PurePath(output) if isinstance(output, str) else PurePath()
    if place.is_absolute() or any(part.startswith((".", "~")) for part in place.parts):
        raise UsageError(
            "a recipe's outputs are in the folder in which it runs",
            found=crop(repr(output)),
            hint="only -o may be elsewhere",
        )


def _check_of_the_run(given: Mapping[str, Any]) -> None:
    """Raise UsageError for arguments that say how a recipe runs."""
    named = {name: value for name, value in _named(given).items() if name in {*OF_THE_RUN, *OF_THE_SHELL}}
    if named:
        words = (
            [f"--{name.replace('_', '-')}", *([] if value is True else [shlex.quote(str(value))])]
            for name, value in named.items()
            if name != "part" and value not in (False, None)
        )
        options = crop(" ".join(word for option in words for word in option))
        raise UsageError(
            "a recipe has no options that say how it runs",
            found=some([*named], 4),
            hint=f"pass {options} to `monosoup run`" if options else "leave it out",
        )


def _step(content: Mapping[str, Any], *, is_of_mergekit: bool = False) -> Step:
    """A step of a recipe, whose keys are a command's keywords."""
    from monosoup_cli.api.command import renamed_options
    from monosoup_cli.api.commands import COMMANDS
    from monosoup_cli.pipeline.planned import check_task

    arguments = _named(content)
    if isinstance(layers := arguments.get("layers"), dict):
        arguments["layers"] = {str(glob): _named(settings) for glob, settings in layers.items()}
    name = arguments.pop("command", None)
    if name is None:
        found = some([crop(key) for key in arguments], 4) or "nothing"
        keys = [f"command: {key}" for key in arguments if key in COMMANDS]
        keys += [one for key in arguments if (one := nearest(key, KEYS)) is not None and one != key]
        hint = f"did you mean {keys[0]}?" if keys else None
        raise UsageError("a step needs a command", found=found, hint=hint)
    if not isinstance(name, str) or name not in COMMANDS:
        raise UsageError(
            "unknown command",
            expected=", ".join(COMMANDS),
            found=crop(repr(name)),
            hint=did_you_mean(str(name), COMMANDS),
        )
    command = COMMANDS[name]
    named = [one for one in PROGRAMS if arguments.get(one)]
    if named:
        raise UsageError(
            f"a recipe runs no programs: {some(named, 4)}", hint=f"choose with `monosoup {name}` in a shell"
        )
    _check_of_the_run(arguments)
    known = [key for key in command.declared if key not in {*OF_THE_RUN, *PROGRAMS}]
    also = placeholders(command.declared)
    check_keys(f"`{name}` has no argument", arguments, known, expected=", ".join(known), also=also)
    for key, value in arguments.items():
        if key != LAYERS:
            arguments[key] = command.declared[key].taken(value)
    missing = [
        one.name
        for one in command.declared.values()
        if one.default is inspect.Parameter.empty and one.name not in arguments
    ]
    if missing:
        raise UsageError(f"{name} needs {some(missing, 4)}")
    written = {
        flag: keyword
        for flag, keyword in keywords_of(command.declared, is_in_yaml=True).items()
        if keyword.name not in OF_THE_RUN and flag != "-o"
    }

    def renamed() -> AbstractContextManager[None]:
        return _hints_of_mergekit(name) if is_of_mergekit else renamed_options(written)

    with renamed():
        check_task(command.task(**arguments))

    @contextmanager
    def prepare(**own: Any) -> Iterator[Planned]:
        with renamed(), command.prepare(**arguments, **own) as planned:
            yield planned

    return Step(command, arguments, prepare, is_of_mergekit)  # type: ignore[arg-type]


@contextmanager
def _hints_of_mergekit(command: str) -> Iterator[None]:
    """Have hints say how a configuration of mergekit says it, or that only the command can."""
    from monosoup_cli.pipeline.inputs import NEEDS_BASE

    try:
        yield
    except MonosoupError as error:
        hint = error.hint or ""
        if error.problem == NEEDS_BASE:
            error.hint = f"name it as model: BASE+{error.path}{hint.partition('BASE')[2]}"
        elif {*FLAG.findall(hint)} - {OF_THE_RUN[name].flag for name in TAKEN}:
            error.hint = f"{hint}; mergekit has no such key, so give it to `monosoup {command}`"
        raise


def _named(content: Any) -> Any:
    """Arguments under the names that Python has for them; what has no names stays as it is.

    Raises:
        UsageError: One is there twice.
    """
    if not isinstance(content, dict):
        return content
    arguments: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name in arguments:
            raise UsageError(f"{crop(name)} is there twice, with a dash and with an underscore")
        arguments[name] = value
    return arguments


def _of_report(path: Path, output: StrPath | None) -> Step:
    """The command of a report, with the inputs as they were: ids at their commits, the members of a soup."""
    from monosoup_cli.api.again import recorded_step
    from monosoup_cli.api.recipe_file import check_text
    from monosoup_cli.pipeline.verify_inputs import changed_inputs
    from monosoup_cli.report.files import NO_REPORT, read_report

    try:
        report = read_report(path)
    except ReportError as error:
        if error.hint == NO_REPORT:
            error.hint = (
                "pass the report itself, from where it was written: `monosoup run REPORT.json -o NEW`"
            )
        elif path.suffix == ".json" and path.is_file():
            error.hint = f"{f'{error.hint}; ' if error.hint else ''}a recipe has the suffix .yaml"
        raise
    if output is None:
        raise UsageError("a report's own output is there", path=path, hint="add -o NEW")
    check_text(report["arguments"], path)
    for changed in changed_inputs(report):
        raise changed
    try:
        command, arguments, opened = recorded_step(report, os.fspath(output))
    except (ReportError, UsageError) as error:
        error.path = error.path or str(path)
        raise
    kept = {name: value for name, value in arguments.items() if name not in OF_THE_RUN}
    repeats = {name: part for name, part in report.items() if name != "layers"}

    @contextmanager
    def prepare(**own: Any) -> Iterator[Planned]:
        with opened({**kept, "device": arguments.get("device", "auto"), **own}) as planned:
            yield replace(planned, task=replace(planned.task, repeats=repeats))

    return Step(command, kept, prepare)  # type: ignore[arg-type]
