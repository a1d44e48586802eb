"""YAML that a person wrote, read without running anything and without growing: an alias may stand for an alias, ten times over."""

from __future__ import annotations

from typing import Any

import yaml

MOST_CHARACTERS = 4 * 2**20  # the largest configuration of this project has 6,000
MOST_VALUES = 100_000  # with every alias counted as what it stands for


class YamlRefused(yaml.YAMLError):
    """The text is larger than any configuration, or becomes so where its aliases are followed."""


def read_yaml(text: str) -> Any:
    """The value of a YAML text; yaml.YAMLError where it has none, or is refused.

    Example:
        >>> read_yaml("a: &x [1, 2]\\nb: *x")
        {'a': [1, 2], 'b': [1, 2]}
        >>> bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\\n"
        >>> bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\\n" for i in range(1, 8))
        >>> read_yaml(bomb)
        Traceback (most recent call last):
        security.yaml_files.YamlRefused: stands for more than 100,000 values where its aliases are followed
    """
    if len(text) > MOST_CHARACTERS:
        raise YamlRefused(f"has more than {MOST_CHARACTERS:,} characters")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}, set()) > MOST_VALUES:
            raise YamlRefused(f"stands for more than {MOST_VALUES:,} values where its aliases are followed")
        return loader.construct_document(node)
    except RecursionError:
        raise YamlRefused("is nested too deeply") from None
    except (ValueError, OverflowError) as error:  # a date of month 13, a number of more digits than Python converts
        raise YamlRefused(" ".join(str(error).split())) from None
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """How many values a node stands for; each node is looked at once, however often it is named."""
    if id(node) in above:
        raise YamlRefused("holds an alias that leads back to itself")
    if id(node) not in known:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        above.add(id(node))
        known[id(node)] = 1 + sum(_size(each, known, above) for each in inner)
        above.discard(id(node))
    return known[id(node)]
