"""Settings in YAML, read by the rules of YAML 1.2, by which a value is what it looks like.

PyYAML follows YAML 1.1, where 1e-3 is text, `no` is false, 010 is 8 and 1:30 is 90; and it lets the last of two equal
names count.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

_TAG = "tag:yaml.org,2002:"
# What is no text unless it is quoted (the "core schema" of YAML 1.2), and the characters that such values begin with.
_PLAIN = {
    "null": (r"~|null|Null|NULL|", ("~", "n", "N", "")),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "merge": (r"<<", "<"),
}
_KINDS = {None, *(_TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map"))}


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML document.

    Raises:
        ModuleNotFoundError: PyYAML is not installed.
        ValueError: the text is no YAML, or has a name twice; the message gives the line.
    """
    try:
        import yaml
    except ModuleNotFoundError:
        raise ModuleNotFoundError("settings in YAML need the package PyYAML: pip install pyyaml") from None

    class Loader(yaml.SafeLoader):
        # These tables of SafeLoader belong to all its users.
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
        yaml_constructors: ClassVar[dict[str | None, Any]] = {
            tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in _KINDS
        }

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            names = [key.value for key, _ in node.value]
            for key, _ in node.value:
                if names.count(key.value) > 1:
                    problem = f"{key.value!r} is there twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            return node

        def construct_yaml_int(self, node: Any) -> int:
            value = self.construct_scalar(node)
            return int(value, 0) if value[:2] in ("0o", "0x") else int(value)

    Loader.add_constructor(f"{_TAG}int", Loader.construct_yaml_int)
    for kind, (pattern, first) in _PLAIN.items():
        Loader.add_implicit_resolver(_TAG + kind, re.compile(rf"(?:{pattern})\Z"), list(first))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f"line {mark.line + 1}: "
        raise ValueError(place + " ".join(str(getattr(error, "problem", None) or error).split())) from None
    # PyYAML's error for a word after the tag !!bool that is none of its words for true and false.
    except KeyError as error:
        raise ValueError(f"{error} is not true or false") from None
