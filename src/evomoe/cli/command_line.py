"""Runs one verb, and lets errors that a user can mend be one line."""

import os
import sys
from collections.abc import Callable

import tyro

from evomoe.cli.router_flags import value_of, with_router_flags
from evomoe.cli.serving_verbs import app, chat, export, look, serve_with
from evomoe.cli.terminal import leave_stdout, named_stdout, open_closed_streams, option_names, plain_warnings, positional
from evomoe.cli.verbs import (
    analyze,
    attach,
    compose,
    demo,
    doctor,
    evaluate,
    list_names,
    params,
    plot,
    print_recipe,
    score,
    table,
    train_from,
    upcycle,
)
from evomoe.recipe.options import AttachOptions, MoEOptions
from evomoe.support.allow_missing import ALLOW_MISSING
from evomoe.support.errors import no_such, told_by_others, with_flags
from evomoe.support.processes import check_processes
from evomoe.support.version import __version__


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb; errors a user can mend are one line, without a traceback."""
    open_closed_streams()
    try:
        os.getcwd()
    except FileNotFoundError:  # without it libraries end the process in words of their own
        print("evomoe: the folder that you are in has been removed; go to another.", file=sys.stderr)
        return 1
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--allow-missing-weights" in arguments:  # of every verb that loads a model, and of the processes that it starts
        arguments = [argument for argument in arguments if argument != "--allow-missing-weights"]
        os.environ[ALLOW_MISSING] = "1"
    engine_options: list[str] = []
    if arguments[:1] == ["serve"] and "--" in arguments:
        at = arguments.index("--")
        arguments, engine_options = arguments[:at], arguments[at + 1 :]
    router = value_of("--router", arguments) or MoEOptions.router
    verbs = {
        "demo": demo,
        "train": train_from(arguments),
        "recipe": print_recipe,
        "upcycle": with_router_flags(upcycle, MoEOptions(), router, arguments),
        "attach": with_router_flags(attach, AttachOptions(), AttachOptions.router, arguments),
        "params": with_router_flags(params, MoEOptions(), router, arguments),
        "compose": compose,
        "export": export,
        "chat": chat,
        "app": app,
        "look": look,
        "serve": serve_with(engine_options),
        "eval": evaluate,
        "score": score,
        "table": table,
        "analyze": analyze,
        "plot": plot,
        "list": list_names,
        "doctor": doctor,
    }
    if arguments == ["--version"]:
        print(f"evomoe {__version__}")
        return 0
    verb = verbs.get(arguments[0]) if arguments else None
    without_flag = positional(verb) if verb else set()
    try:
        with named_stdout(), plain_warnings(without_flag):
            if arguments[:1] != ["doctor"]:  # which looks at the environment itself
                check_processes()
            if arguments and not verb and not arguments[0].startswith("-"):
                print(f"evomoe: {no_such(arguments[0], verbs, 'verb')}.", file=sys.stderr)
                raise SystemExit(2)
            if verb:  # not through all verbs: an error shall point to the help of this one
                tyro.cli(verb, prog=f"evomoe {arguments[0]}", args=arguments[1:], config=(tyro.conf.AvoidSubcommands,))
            else:
                only_described = arguments in ([], ["-h"], ["--help"])
                tyro.extras.subcommand_cli_from_dict(
                    {name: _described_alone(one) for name, one in verbs.items()} if only_described else verbs,
                    prog="evomoe",
                    description="Turn a dense vision-language model into a mixture of experts. `evomoe --version` names the version.",
                    args=arguments,
                )
            sys.stdout.flush()  # here, so that a reader that has gone away is noticed here
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        leave_stdout(sys.stdout)
    except (ValueError, OSError, ImportError) as error:
        known = {name for one in verbs.values() for name in option_names(one)}
        print(f"evomoe: {with_flags(error, without_flag, known)}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not (told := told_by_others(error)):
            raise
        print(f"evomoe: {told}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(" ".join(["evomoe: interrupted.", *map(str, interrupt.args)]), file=sys.stderr)
        return 130
    return 0


def _described_alone(verb: Callable[..., None]) -> Callable[[], None]:
    """What the list of verbs needs of one: its description. Reading the options of all takes longer than all else."""

    def described() -> None: ...

    described.__doc__ = verb.__doc__
    return described
