"""Python code as its syntax alone, so that comments, docstrings and layout may change and it counts as the same."""

import ast


def parse_code(source: bytes) -> ast.Module:
    """Returns the syntax tree of a module without docstrings, and without other texts that stand alone."""
    return without_documentation(ast.parse(source))


def without_documentation(tree: ast.Module) -> ast.Module:
    """Removes from a tree, and returns it, all statements that are constants alone, such as docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            is_text = [isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in node.body]
            node.body = [s for s, text in zip(node.body, is_text, strict=True) if not text]
    return tree
