"""Make the Python functions of commands out of what declares them.

A command is declared once, by a function with an explicit signature whose options are annotated with an
`Option`. `command` makes two functions of it: the public one, which returns the report, and `prepare`, which
stops before the first tensor is read. The shell's options come from the same declaration (cli/options.py).
"""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeAlias, TypeVar, cast

from monosoup_cli.api.layers import by_layer, checked_layers
from monosoup_cli.api.plan import chooses_dry, plan_of
from monosoup_cli.api.progress import Watch, watched
from monosoup_cli.declaration import evaluate, keywords_of, placeholders, taken
from monosoup_cli.errors import Keyword, MonosoupError, with_names
from monosoup_cli.options import Call, DeclaredOption, LayerOptions, RunOptions, as_list, declared_in
from monosoup_cli.tensors.method import AdapterOrder, Group, Method, Order
from monosoup_cli.tensors.patterns import LAYERS
from monosoup_cli.values import nearest

if TYPE_CHECKING:
    from monosoup_cli.outputs.form import OutputKind
    from monosoup_cli.pipeline.engine import Progress
    from monosoup_cli.pipeline.planned import Planned
    from monosoup_cli.pipeline.ready import Ready
    from monosoup_cli.pipeline.task import Chooser, OnScore, Task
    from monosoup_cli.tensors.plan import PlannedTensor

__all__ = [
    "Command",
    "Request",
    "command",
    "document",
    "execute_by_engine",
    "kinds_of",
    "passes_over",
    "publish",
    "renamed_options",
    "taken_arguments",
]

P = ParamSpec("P")
Asked: TypeAlias = "Order | AdapterOrder | Request"
Prepared = TypeVar("Prepared", bound=AbstractContextManager[Any])

DOC_WIDTH = 100
"""How long the lines of docstrings are."""
PROGRESS = inspect.Parameter(
    "progress",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation="Callable[[PlannedTensor, bool], None] | type[tqdm] | None",
)
PROGRESS_HELP = (
    "A class of progress bars, such as tqdm: a bar counts the bytes of the tensors. Or a function that"
    " worker threads call with a tensor and a flag: False when they start it, True when they finish it. Where"
    " tensors must be examined before the output is laid out, they have a bar of their own for that, and are"
    " started and finished twice."
)


def _whole() -> OutputKind:
    from monosoup_cli.outputs.whole import WHOLE

    return WHOLE


@dataclass(frozen=True)
class Request:
    """An order with more than a method: another kind of output, or a choice among the inputs.

    Attributes:
        order: The method and the inputs.
        kind: What is written; a whole checkpoint by default.
        chooser: Chooses the checkpoints that are averaged; None to average all.
        notes: What the settings do that their names do not say; said before the run.
    """

    order: Order
    kind: OutputKind = field(default_factory=_whole)
    chooser: Chooser | None = None
    notes: Sequence[str] = ()


def _requested(asked: Asked) -> Request:
    """What a command's declaration asks for, whichever way it says that."""
    if isinstance(asked, Request):
        return asked
    if isinstance(asked, AdapterOrder):
        from monosoup_cli.outputs.extracted_adapter import ExtractedAdapterKind

        return Request(asked.order, ExtractedAdapterKind.of(asked))
    return Request(asked)


class Command(Protocol[P, Prepared]):
    """A Python function that runs a command and returns its report.

    Attributes:
        prepare: Takes the same arguments and stops before the first tensor is read.
        declared: The options of the command, its own before the shared ones.
    """

    __name__: str
    __doc__: str | None
    declared: Mapping[str, DeclaredOption]
    prepare: Callable[P, Prepared]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]: ...


class WritingCommand(Command[P, "Planned"], Protocol[P]):
    """A command that writes an output.

    Attributes:
        task: Takes the same arguments, and returns what they ask for; nothing is opened.
        plan: Takes the same arguments, and returns what a dry run prints as JSON; nothing is written.
        group: Where the shell's help lists it.
    """

    task: Callable[P, Task]
    plan: Callable[P, dict[str, Any]]
    group: Group


def command(
    group: Group, helps: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Callable[P, Asked]], WritingCommand[P]]:
    """Make a command that writes an output, of the function that turns its arguments into an order.

    The docstring of that function is the help of the shell command.

    Args:
        group: Where the shell's help lists it.
        helps: What it says of shared options, where that is not what they say of themselves.
    """

    def make(order: Callable[P, Asked]) -> WritingCommand[P]:
        made = _writing_command(order, helps)
        made.group = group
        return made

    return make


def _writing_command(order: Callable[P, Asked], helps: Mapping[str, str]) -> WritingCommand[P]:
    own = declared_in(order)
    example = _example_of_layers(own)
    declared = {**own, **(declared_in(LayerOptions) if example else {}), **RunOptions.declared()}
    if example:
        declared[LAYERS] = declared[LAYERS].saying(f"{declared[LAYERS].option.help} Example: {example}.")
    declared |= {name: declared[name].saying(words) for name, words in helps.items()}
    signature = inspect.signature(order)
    name = order.__name__

    def task(*args: P.args, **kwargs: P.kwargs) -> Task:
        from monosoup_cli.pipeline.task import Task

        options = RunOptions.of(kwargs)
        request = _requested(order(*args, **kwargs))
        layers = checked_layers(kwargs.get(LAYERS), example)
        notes = [*request.notes]

        def method(keywords: Mapping[str, Any]) -> Method:
            of_layer = _requested(order(*args, **keywords))
            notes.extend(of_layer.notes)
            return of_layer.order.method

        if layers:
            by_name = by_layer(layers, request.order.method, own, kwargs, method)
            request = replace(request, order=replace(request.order, method=by_name))
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        inputs = [key for key in ("base", "finetuned", "output") if key in own]  # first in every report
        arguments = {
            **{key: _reported(bound.arguments[key], own[key]) for key in dict.fromkeys([*inputs, *own])},
            "finetuned": list(request.order.finetuned),
            **request.order.arguments,
            **({LAYERS: layers or None} if LAYERS in declared else {}),
            **dict(options.items()),
        }
        call = Call(name, arguments, declared)
        return Task(
            call, options, request.order, request.kind, request.chooser, layers, [*dict.fromkeys(notes)]
        )

    def prepare(*args: P.args, **kwargs: P.kwargs) -> Planned:
        from monosoup_cli.pipeline.planned import prepare

        return prepare(task(*args, **kwargs))

    def run(planned: Planned, watch: Watch) -> dict[str, Any]:
        from monosoup_cli.pipeline.parts import make_part
        from monosoup_cli.pipeline.ready import make_ready
        from monosoup_cli.pipeline.scoring import ignore_scores

        with watched(watch, planned.examined, "examining") as progress:
            ready = make_ready(planned, progress)
        doing = "writing" if planned.examined else name
        if ready.share.part is not None:
            with watched(watch, ready.share.tensors, doing) as progress:
                return dict(make_part(ready, progress).facts)
        with watched(watch, passes_over(ready), doing) as progress:
            report = execute_by_engine(ready, progress, ignore_scores)
        if planned.destination.options.push is not None:
            planned.destination.push(planned.task.call)
        return report

    also = {"dry_run": f"{name}.plan"}
    made = cast("WritingCommand[P]", publish(order, declared, prepare, run, returns="Planned", also=also))
    made.task, made.plan = task, _plan(order, made)
    return made


def _example_of_layers(own: Mapping[str, DeclaredOption]) -> str:
    """The argument `layers` with the first setting that is a number, or else a flag; "" if it takes none.

    One of a split comes last: an energy may do harm (docs/questions.md).
    """
    of_layer = [one for one in own.values() if one.option.of_layer]
    of_layer.sort(key=lambda one: one.option.of_layer == "split")
    settings = ({one.name: value} for value in (0.8, False) for one in of_layer if one.accepts(value))
    return next((str({"*mlp*": setting}) for setting in settings), "")


def _plan(declaration: Callable[P, Asked], made: WritingCommand[P]) -> Callable[P, dict[str, Any]]:
    """The function that returns the plan of a command."""

    def plan(*args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        watch: Any = kwargs.get(PROGRESS.name)
        with renamed_options(keywords_of(made.declared)), made.prepare(*args, **kwargs) as planned:
            return plan_of(planned, watch)

    signature = _signature(declaration, made.declared).replace(return_annotation="dict[str, Any]")
    document(
        plan,
        declaration,
        made.declared,
        signature,
        name=f"plan_{declaration.__name__}",
        returns="What `--dry-run --format json` prints.",
    )
    return plan


@contextmanager
def renamed_options(names: Mapping[str, Keyword]) -> Iterator[None]:
    """Have errors name keywords in the place of the shell's options: for each flag, another name."""
    try:
        yield
    except MonosoupError as error:
        error.rename_options(names)
        raise


def passes_over(ready: Ready) -> list[PlannedTensor]:
    """The tensors that a run works on: twice, where it first reads all of them to choose among the inputs."""
    return [*ready.plan.tensors] * (2 if chooses_dry(ready.planned) else 1)


def execute_by_engine(ready: Ready, progress: Progress, on_score: OnScore) -> dict[str, Any]:
    """Make an output on the engine that the user asked for, and return its report."""
    if ready.planned.task.options.writing.engine == "threads":
        from monosoup_cli.pipeline.execute import execute

        return execute(ready, progress, on_score)
    from monosoup_cli.pipeline.ray_cluster import execute_on_ray

    return execute_on_ray(ready, progress)


def publish(
    declaration: Callable[P, Any],
    declared: Mapping[str, DeclaredOption],
    prepare: Callable[P, Prepared],
    run: Callable[[Prepared, Watch], dict[str, Any]],
    *,
    returns: str,
    also: Mapping[str, str] = MappingProxyType({}),
) -> Command[P, Prepared]:
    """Make the public function of a command, and its `prepare`.

    Both refuse unknown keywords as Python does, and have the signature of the declaration with the shared
    options in the place of `**options`.

    Args:
        declaration: Has the signature and the docstring.
        declared: The options, its own before the shared ones.
        prepare: Opens the inputs.
        run: Takes what `prepare` returns, and the argument `progress`; returns the report.
        returns: The type of what `prepare` returns.
        also: What other keywords are called here.
    """
    name = declaration.__name__
    signature = _signature(declaration, declared)
    kinds = kinds_of(signature, declaration) | {PROGRESS.name: Watch}
    also = {**placeholders(declared), **also}
    kinds.pop(LAYERS, None)  # what is wrong with a setting is said of that setting

    def prepared(*args: P.args, **kwargs: P.kwargs) -> Prepared:
        given, keywords = taken_arguments(name, kinds, signature, args, kwargs, also)
        keywords.pop(PROGRESS.name, None)
        return prepare(*given, **keywords)

    def public(*args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        watch: Any = kwargs.get(PROGRESS.name)
        with renamed_options(keywords_of(declared)), prepared(*args, **kwargs) as opened:
            return run(opened, watch)

    document(
        public,
        declaration,
        declared,
        signature.replace(return_annotation="dict[str, Any]"),
        returns="The report as a dict (docs/report.schema.json). A command that writes an output also writes"
        " it as JSON.",
    )
    document(
        prepared,
        declaration,
        declared,
        signature.replace(return_annotation=returns),
        name=f"prepare_{name}",
        returns="A context manager that holds the opened inputs.",
    )
    made = cast("Command[P, Prepared]", public)
    made.prepare, made.declared = prepared, declared
    return made


def kinds_of(signature: inspect.Signature, function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's parameters."""
    return {name: evaluate(one.annotation, function) for name, one in signature.parameters.items()}


def taken_arguments(
    name: str,
    kinds: Mapping[str, Any],
    signature: inspect.Signature,
    args: Sequence[Any],
    keywords: Mapping[str, Any],
    also: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Any, Any]:
    """The arguments of a function by its signature and the types of its parameters, by position and by name.

    Raises:
        TypeError: It does not take such a keyword.
        UsageError: An argument is not of its type.
    """
    by_position = [one.name for one in signature.parameters.values() if one.kind is not one.KEYWORD_ONLY]
    for keyword in keywords:
        if keyword not in signature.parameters:
            meant = nearest(keyword, signature.parameters, also)
            hint = f"; did you mean {meant!r}?" if meant else ""
            raise TypeError(f"{name}() got an unexpected keyword argument {keyword!r}{hint}")

    def one(key: str, value: Any) -> Any:
        return taken(key, value, kinds.get(key, Any), signature.parameters[key].default)

    positional = [one(key, value) for key, value in zip(by_position, args, strict=False)]
    return [*positional, *args[len(positional) :]], {key: one(key, value) for key, value in keywords.items()}


def _signature(declaration: Callable[..., Any], declared: Mapping[str, DeclaredOption]) -> inspect.Signature:
    """The signature of a command: that of its declaration, with the shared options and `progress` in the
    place of `**options`."""
    own = inspect.signature(declaration).parameters
    parameters = [
        one.replace(annotation=declared[name].type) if name in declared else one
        for name, one in own.items()
        if one.kind is not one.VAR_KEYWORD
    ]
    shared = [one.parameter for name, one in declared.items() if name not in own]
    return inspect.Signature([*parameters, *shared, PROGRESS])


def document(
    function: Callable[..., Any],
    declaration: Callable[..., Any],
    declared: Mapping[str, DeclaredOption],
    signature: inspect.Signature,
    *,
    returns: str,
    name: str | None = None,
) -> None:
    """Give a function the name (or another `name`), the module, the whole signature and the docstring of a
    command.

    The docstring is that of the declaration, with keywords in the place of options, and every option.
    """
    function.__name__ = function.__qualname__ = name or declaration.__name__
    function.__module__ = declaration.__module__
    function.__wrapped__, function.__signature__ = declaration, signature  # type: ignore[attr-defined]
    annotations = {one.name: one.annotation for one in signature.parameters.values()}
    function.__annotations__ = {**annotations, "return": signature.return_annotation}
    names = keywords_of(declared)
    helps = {key: _in_python(one.option.help, names) for key, one in declared.items()}
    if PROGRESS.name in signature.parameters:
        helps[PROGRESS.name] = PROGRESS_HELP
    options = "\n".join(_folded(f"{key}: {words}") for key, words in helps.items())
    text, *example = inspect.cleandoc(declaration.__doc__ or "").partition("\n\nExample: ")
    text = with_names(text, names | {"--dry-run": Keyword(f"{declaration.__name__}.plan")})
    function.__doc__ = (
        f"{text}{''.join(example)}\n\nArgs:\n{options}"
        f"\n\nReturns:\n{_folded(returns, 4)}\n\nRaises:\n"
        "    monosoup_cli.errors.MonosoupError: The call is refused, or fails."
    )


def _in_python(text: str, names: Mapping[str, Keyword]) -> str:
    """A help text of the shell, with keywords in the place of its options."""
    return with_names(re.sub(r" Repeatable\b[^.]*\.", "", text), names)


def _folded(text: str, further: int = 8) -> str:
    """A paragraph of a docstring, whose further lines have another indent."""
    fold = partial(textwrap.fill, width=DOC_WIDTH, break_long_words=False, break_on_hyphens=False)
    return fold(text, initial_indent=" " * 4, subsequent_indent=" " * further)


def _reported(value: Any, declared: DeclaredOption) -> Any:
    """An argument as the report has it: paths as text, and lists where Python takes one value or several."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return as_list(value) if declared.option.shell == list[str] else value
