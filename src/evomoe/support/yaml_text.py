"""YAML of users' files, with errors that say where it is broken. Numbers are what JSON takes for numbers: 1e-3 is one."""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from evomoe.support.names import refuse_special


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # a few of them can unfold into more than any memory
            raise yaml.composer.ComposerError(
                None, None, "an alias (*name); write the value itself", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' stands there twice", key_node.start_mark)
            seen |= {key} if isinstance(key, str) else set()
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper): ...


_INT, _FLOAT, _DATE = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))
_SIGNED = list("-+0123456789")
_Dumper.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), _SIGNED)
# YAML 1.1 takes 010 for 8, 1:30 for 90 and 2026-11-30 for a date; here they are text, which no number's option takes.
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in (_INT, _FLOAT, _DATE)]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?(0|[1-9]\d*)$"), _SIGNED)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"^[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"),
    [*_SIGNED, "."],
)


def in_a_line(value: Any) -> str:
    """A value as YAML without line breaks."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def read_yaml(path: str | Path) -> Any:
    """The value of a YAML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is broken; the message has the line and column.
    """
    refuse_special(path)
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8-sig"), _Loader)  # noqa: S506: a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{path}{where}: broken YAML: {error.problem}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the file is not UTF-8 text: {error.reason}.") from error
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        reason = "lists or objects are nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path}: broken YAML: {reason}") from error
