"""What `--config=FILE --help` prints: every field of a recipe, with its value and the comment beside it in the file."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

from ppa_jax import config as configs


def describe(file: str) -> str:
    """The recipe's docstring and its fields, one a line. Raises UserError as `config.load` does."""
    path, _ = configs.find_recipe(file)
    fields = configs.fields(configs.load(file))
    about = comments(path)
    lines = [(f"--config.{name}={_shown(value)}", comment(name, about)) for name, value in fields.items()]
    width = min(48, max(len(field) for field, _ in lines))
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or str(path)
    table = "\n".join(f"  {field:{width}}  {said}".rstrip() for field, said in lines)
    return f"{docstring}\n\nFields, with their values in {file}:\n{table}"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def comment(name: str, about: dict[str, str]) -> str:
    """The comment of the field, or of the innermost group around it that has one."""
    while name and name not in about:
        name = name.rpartition(".")[0]
    return about.get(name, "")


def comments(path: Path) -> dict[str, str]:
    """The trailing comments of a recipe's fields, by dotted name, including the recipes it loads.

    A field is a keyword in a nested call, `train=dict(steps=0,  # comment`, or an attribute that is assigned,
    `c.train.steps = 0  # comment`. A recipe may be loaded as a whole, `load("ppa")`, or in part, `load("ppa").mesh`.
    """
    source = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    on_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found: dict[str, str] = {}

    def visit(value: ast.expr, name: str) -> None:
        call, group = (value.value, f"{value.attr}.") if isinstance(value, ast.Attribute) else (value, "")
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "load":
            recipe, here = call.args[0], f"{name}." if name else ""
            if isinstance(recipe, ast.Constant) and isinstance(recipe.value, str):
                loaded = comments(configs.find_recipe(recipe.value)[0])
                found.update({here + x.removeprefix(group): loaded[x] for x in loaded if x.startswith(group)})
        elif isinstance(value, ast.Call):
            if value.lineno in on_line:  # of a group, for its fields without one
                found[name] = on_line[value.lineno]
            for keyword in value.keywords:
                if keyword.arg:
                    visit(keyword.value, f"{name}.{keyword.arg}" if name else keyword.arg)
        elif value.end_lineno in on_line:
            found[name] = on_line[value.end_lineno]

    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name | ast.Attribute):
            field = ast.unparse(target).partition(".")[2]  # `c.train.steps`, or the configuration itself
            visit(node.value, field)
    return found
