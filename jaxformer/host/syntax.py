"""Python code reduced to its syntax, so that changes of comments, docstrings and layout do not count."""

import ast
import sys
from collections.abc import Iterator


def parse_code(source: bytes) -> ast.Module:
    """Returns the syntax tree of a module without docstrings, and without other statements that are only constants."""
    tree = ast.parse(source)
    for node in [tree, *statements(tree)]:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            is_text = [isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in node.body]
            node.body = [s for s, text in zip(node.body, is_text, strict=True) if not text]
    return tree


def dump(tree: ast.AST) -> str:
    """Returns a syntax tree as text, the same for all supported versions of Python."""
    with_empty: dict = {"show_empty": True} if sys.version_info >= (3, 13) else {}  # Before, there was no choice.
    return ast.dump(tree, **with_empty).replace(", type_params=[]", "")  # New in 3.12.


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields the statements of a tree without walking through their expressions, which are most of it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            yield node
            yield from statements(node)
