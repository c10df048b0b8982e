"The glossary says where each word lives, and is right."
import re
from pathlib import Path

import nbformat

NBS = Path(__file__).parents[1] / "nbs"
LINE = re.compile(r"\| \*\*(.+?)\*\* \| (.+?) \| \[(\w+)\]\((\S+)\) \|")


def lines():
    text = "\n".join(cell.source for cell in nbformat.read(NBS / "glossary.ipynb", 4).cells)
    found = LINE.findall(text)
    assert len(found) > 40 and len(found) == sum(line.startswith("| **") for line in text.splitlines())
    return found


def test_each_word_stands_once():
    words = [word for line in lines() for word in line[0].split(", ")]
    assert len(set(words)) == len(words)


def test_each_word_names_a_module_and_its_notebook():
    for word, _, module, page in lines():
        assert re.search(rf"default_exp {module}\b", (NBS / page).read_text()), word


def test_a_word_is_explained_in_one_or_two_sentences():
    assert not [word for word, text, *_ in lines() if len(re.findall(r"[.?!](?: |$)", text)) > 3 or len(text) > 260]
