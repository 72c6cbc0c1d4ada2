"""The documents hold: their Python blocks run, and their links lead somewhere.

The blocks of a file run in order and share their names, as a reader would paste them. A block that
cannot run here is fenced as "python no-run"; that stays an exception.
"""

import dataclasses
import pathlib
import re
import sys
import types
from urllib.parse import unquote

import pytest

from kdtoolkit.registry import PUBLIC_CLASSES

pytestmark = pytest.mark.tensorflow

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NOT_RUN_AT_MOST = 5
# A fence with another info string, such as "py", would be Python that nobody runs.
KINDS = {"python", "python no-run", "text", "bash", ""}
FENCE = re.compile(r"^\s*```")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: what the fence says, the number of lines above the code, the code."""

    kind: str
    above: int
    code: str


def blocks_of(text):
    found, kind, start = [], None, 0
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if not FENCE.match(line):
            continue
        if kind is None:
            kind, start = line.strip().strip("`").strip(), number
        else:
            found.append(Block(kind, start, "\n".join(lines[start : number - 1])))
            kind = None
    assert kind is None, f"the fence in line {start} is never closed"
    return found


def run(path, blocks):
    """Run the blocks as one module; errors point at the line of the document."""
    module = types.ModuleType("document")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    for block in blocks:
        code = compile("\n" * block.above + block.code, str(path), "exec")
        exec(code, vars(module))


def without_code(text):
    """The prose: links inside code are no links."""
    prose = re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", prose)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """An empty folder to run in. Classes that a document defines are forgotten at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "document", None)
    before = dict(PUBLIC_CLASSES)
    yield
    PUBLIC_CLASSES.clear()
    PUBLIC_CLASSES.update(before)


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


WITH_CODE = [p for p in DOCUMENTS if any(b.kind == "python" for b in blocks_of(p.read_text()))]


@pytest.mark.parametrize("path", WITH_CODE, ids=names(WITH_CODE))
def test_the_python_blocks_run(path, bench):
    run(path, [block for block in blocks_of(path.read_text()) if block.kind == "python"])


def test_nearly_all_python_blocks_are_run():
    kinds = [block.kind for path in DOCUMENTS for block in blocks_of(path.read_text())]
    assert kinds.count("python") > 10
    assert kinds.count("python no-run") <= NOT_RUN_AT_MOST


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_every_fence_says_what_is_in_it(path):
    assert {block.kind for block in blocks_of(path.read_text())} <= KINDS


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_every_relative_link_leads_to_a_file(path):
    targets = [unquote(target) for target in LINK.findall(without_code(path.read_text()))]
    local = [target.partition("#")[0] for target in targets if "://" not in target]
    missing = [target for target in local if target and not (path.parent / target).exists()]
    assert not missing


def test_a_document_that_is_wrong_would_be_caught(tmp_path, bench):
    document = tmp_path / "wrong.md"
    document.write_text("Text.\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        run(document, blocks_of(document.read_text()))
    assert caught.traceback[-1].lineno + 1 == 8
    assert LINK.findall(without_code("see [a](b.md), `[c](d)`")) == ["b.md"]
