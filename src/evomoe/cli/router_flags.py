"""The options of a router as flags of their own: ``--router-options.rank``, of the router that the arguments name."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, field, fields, make_dataclass
from functools import wraps
from typing import Annotated, Any, TypeVar

import tyro

from evomoe.cli.terminal import refuse
from evomoe.recipe.options import AttachOptions, MoEOptions
from evomoe.recipe.router_options import ROUTER_OPTIONS
from evomoe.recipe.row_options import RouterOptions
from evomoe.support.errors import OptionError
from evomoe.support.rows import check_row

Flat = tyro.conf.arg(name="")
HasRouter = TypeVar("HasRouter", bound=MoEOptions | AttachOptions)


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """What the arguments give a flag; None if they do not name it."""
    parts = [part for argument in arguments for part in argument.split("=", 1)]
    return next((after for before, after in itertools.pairwise(parts) if before == flag), None)


def options_of(router: str) -> type[RouterOptions] | None:
    """The dataclass of a router's options; None if there is no such router. One of your own loads torch."""
    if router in ROUTER_OPTIONS:
        return ROUTER_OPTIONS[router]
    from evomoe.model.routers import ROUTERS

    return getattr(ROUTERS.get(router), "Options", None)


def check_router_name(router: str, arguments: Sequence[str]) -> None:
    """Ends if the arguments have options of a router that is not there, which the parser would say are none of the verb's."""
    if not typed_names(arguments) or router in ROUTER_OPTIONS:
        return
    from evomoe.model.routers import ROUTERS, Router

    try:
        check_row("router", router, ROUTERS, derived_from=Router)
    except OptionError as error:
        refuse(error)


def typed_names(arguments: Sequence[str]) -> set[str]:
    """The router options that the arguments name, in any spelling that the parser takes."""
    prefix = "--router-options."
    flags = [argument.partition("=")[0].replace("_", "-") for argument in arguments]
    names = [flag.removeprefix(prefix) for flag in flags if flag.startswith(prefix)]
    return {name.replace("-", "_") for flag in names for name in (flag, flag.removeprefix("no-"))}


def typed(options: HasRouter, router: str) -> HasRouter:
    """The same options, with a dataclass where the router's stand as a dict. A router that is not there keeps the dict."""
    kind = options_of(router)
    known = {option.name for option in fields(kind)} if kind else set()
    if kind is None or not set(options.router_options) <= known:
        return options
    values = {option.name: getattr(options, option.name) for option in fields(options)}
    made = make_dataclass(
        type(options).__name__,
        [("router_options", kind, field(default_factory=kind))],
        bases=(type(options),),
        frozen=True,
        namespace={"__doc__": type(options).__doc__},
    )
    return made(**values | {"router_options": kind(**options.router_options)})


def plain(given: HasRouter, base: HasRouter, arguments: Sequence[str]) -> HasRouter:
    """The options as they were before ``typed``: of the router's, those that the base or the arguments name.

    Args:
        given: what was parsed.
        base: what ``typed`` was given.
        arguments: what was parsed into ``given``; a default that someone types is an option like any other.
    """
    if isinstance(given.router_options, dict):
        return given
    named = typed_names(arguments) | {*base.router_options}
    values = {name: value for name, value in asdict(given.router_options).items() if name in named}
    kept = {option.name: getattr(given, option.name) for option in fields(base)}
    return type(base)(**kept | {"router_options": values})


def with_router_flags(
    verb: Callable[..., None], base: MoEOptions | AttachOptions, router: str, arguments: Sequence[str]
) -> Callable[..., None]:
    """A verb whose argument ``moe`` has the options of a router as flags.

    Args:
        verb: takes ``moe`` by name.
        base: the defaults of ``moe``.
        router: its name.
        arguments: what will be parsed.
    """
    check_router_name(router, arguments)
    default = typed(base, router)

    @wraps(verb)
    def parsed(*args: Any, moe: Any = default, **kwargs: Any) -> None:
        verb(*args, moe=plain(moe, base, arguments), **kwargs)

    signature = inspect.signature(verb)
    hint = flat(type(default))
    changed = signature.parameters["moe"].replace(annotation=hint, default=default, kind=inspect.Parameter.KEYWORD_ONLY)
    others = [one for name, one in signature.parameters.items() if name != "moe"]
    vars(parsed)["__signature__"] = signature.replace(parameters=[*others, changed])
    parsed.__annotations__ = {**verb.__annotations__, "moe": hint}
    return parsed


def flat(kind: type) -> Any:
    """The annotation of an argument whose fields are flags without a prefix, of a class that was made here."""
    annotated: Any = Annotated
    return annotated[kind, Flat]


def typed_recipe(recipe: Any, router: str, arguments: Sequence[str] = ()) -> Any:
    """A recipe whose mixture is ``typed``; ``arguments`` are what will be parsed."""
    check_router_name(router, arguments)
    moe = typed(recipe.moe, router)
    if moe is recipe.moe:
        return recipe
    made = make_dataclass(
        type(recipe).__name__,
        [("moe", flat(type(moe)), field(default_factory=lambda: moe))],
        bases=(type(recipe),),
        frozen=True,
        namespace={"__doc__": type(recipe).__doc__},
    )
    return made(**{option.name: getattr(recipe, option.name) for option in fields(recipe)} | {"moe": moe})


def plain_recipe(given: Any, base: Any, arguments: Sequence[str]) -> Any:
    """The recipe as it was before ``typed_recipe``."""
    kept = {option.name: getattr(given, option.name) for option in fields(base)}
    return type(base)(**kept | {"moe": plain(given.moe, base.moe, arguments)})
