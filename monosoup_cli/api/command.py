"""Make the Python functions and the shell commands out of what declares them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, cast

from monosoup_cli.options import Call, Declared, RunOptions, as_list, declared_in
from monosoup_cli.outputs.form import OutputKind
from monosoup_cli.outputs.whole import WHOLE
from monosoup_cli.pipeline.execute import execute
from monosoup_cli.pipeline.planned import Planned, prepare
from monosoup_cli.pipeline.ready import make_ready
from monosoup_cli.pipeline.task import Chooser, Task
from monosoup_cli.tensors.method import Order

__all__ = ["Command", "Request", "command", "document"]

P = ParamSpec("P")
REPORT = "The report as a dict (docs/report.schema.json); the same is written as JSON."
PREPARED = (
    "A context manager that holds the opened inputs, ready for `monosoup_cli.pipeline.ready.make_ready`."
)


@dataclass(frozen=True)
class Request:
    """An order with more than a method: another kind of output, or a choice among the inputs."""

    order: Order
    kind: OutputKind = WHOLE
    chooser: Chooser | None = None


class Command(Protocol[P]):
    """A Python function that runs a command and returns its report.

    `prepare` takes the same arguments and stops before the first tensor is read. `declared` has its own options,
    `parameters` the names of all parameters.
    """

    __name__: str
    __doc__: str | None
    declared: Mapping[str, Declared]
    parameters: frozenset[str]
    prepare: Callable[P, Planned]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]: ...


def command(order: Callable[P, Order | Request]) -> Command[P]:
    """Make a command of a function that turns its arguments into an order.

    Args:
        order: An explicit signature, whose options are declared by `Option`. Its docstring is the help of the
            shell command; the options and what is returned are added for Python.
    """
    own = declared_in(order)
    declared = {**own, **RunOptions.declared()}
    signature = inspect.signature(order)
    allowed = {*signature.parameters, *declared, "progress"}
    name = order.__name__

    def prepared(*args: P.args, **kwargs: P.kwargs) -> Planned:
        for keyword in kwargs:
            if keyword not in allowed:
                raise TypeError(f"{name}() got an unexpected keyword argument {keyword!r}")
        shared = {key: value for key, value in kwargs.items() if key not in own}
        options = RunOptions.of(shared)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        made = order(*args, **kwargs)
        request = made if isinstance(made, Request) else Request(made)
        inputs = ("base", "finetuned", "output") if "base" in own else ()
        arguments: dict[str, Any] = dict.fromkeys(inputs)
        arguments |= {key: _reported(bound.arguments[key], own[key]) for key in own}
        arguments |= request.order.arguments
        arguments |= {"finetuned": list(request.order.finetuned), "output": request.order.output}
        call = Call(name, {**arguments, **dict(options.items())}, declared)
        return prepare(Task(call, options, request.order, request.kind, request.chooser))

    def run(*args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        progress: Any = kwargs.get("progress")
        with prepared(*args, **kwargs) as planned:
            ready = make_ready(planned, *([progress] if progress else []))
            report = execute(ready, *([progress] if progress else []))
            if planned.destination.options.push is not None:
                planned.destination.push(name)
            return report

    document(run, order, declared, "dict[str, Any]", REPORT)
    document(prepared, order, declared, "Planned", PREPARED)
    prepared.__name__ = prepared.__qualname__ = f"prepare_{name}"
    made_command = cast("Command[P]", run)
    made_command.prepare = prepared
    made_command.declared = own
    made_command.parameters = frozenset(signature.parameters)
    return made_command


def document(
    function: Callable[..., Any],
    source: Callable[..., Any],
    declared: Mapping[str, Declared],
    returns: str,
    about: str,
) -> None:
    """Give a function the signature of another, and a docstring in Google's style with what options say.

    Args:
        function: The function that users call.
        source: The function that declares the signature and begins the docstring.
        declared: The options that the docstring lists.
        returns: The annotation of what is returned.
        about: What is returned, in words.
    """
    signature = inspect.signature(source).replace(return_annotation=returns)
    function.__name__ = function.__qualname__ = source.__name__
    function.__module__ = source.__module__
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__annotations__ = {**source.__annotations__, "return": returns}
    prose = inspect.cleandoc(source.__doc__ or "")
    arguments = "\n".join(f"    {name}: {one.option.help}" for name, one in declared.items())
    function.__doc__ = (
        f"{prose}\n\nArgs:\n{arguments}\n    progress: Called from worker threads with a tensor, and with False"
        f" when it is begun or True when it is finished.\n\nReturns:\n    {about}\n\nRaises:\n"
        "    monosoup_cli.errors.MonosoupError: The call is refused, or fails."
    )


def _reported(value: Any, declared: Declared) -> Any:
    """An argument as the report has it: paths as text, and lists where Python takes one value or several."""
    if declared.option.shell == list[str]:
        return as_list(value)
    return value.__fspath__() if hasattr(value, "__fspath__") else value
