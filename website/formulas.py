"""Docstrings as the API pages show them: formulas keep their lines, and `:class:` is no Markdown."""

import re

import griffe

FORMULA = re.compile(r"^[\w({|][\w(){}|^+\-*,./' ]{0,40} (=|<-|->) ")


class Docstrings(griffe.Extension):
    def on_instance(self, *, obj, **_):
        if obj.docstring:
            text = re.sub(r":\w+:(`~?)(?:[\w.]+\.)?(\w+`)", r"\1\2", obj.docstring.value).replace("`~", "`")
            text = re.sub(r"^( +\w+: )(?=>)", r"\1\\", text, flags=re.MULTILINE)  # ">= 0" is no quotation
            obj.docstring.value = "\n\n".join(map(kept, text.split("\n\n")))


def kept(paragraph: str) -> str:
    """A paragraph of formulas as a block of code."""
    if FORMULA.match(paragraph) and not paragraph.rstrip().endswith((".", ":")):
        return "```text\n" + paragraph + "\n```"
    return paragraph
