"""Write llmdata_nb/data/languages.tsv (tag, English name, native name, other names) from CLDR's names in langcodes: python tests/make_languages.py

The package reads that small table, because importing all those names takes about a second and 340 MB each time."""
from pathlib import Path
from string import ascii_lowercase as az

from langcodes import Language
from language_data.names import TRIES, name_to_code
from language_data.util import data_filename

SCRIPTS = {"az-Cyrl", "bs-Cyrl", "hi-Latn", "pa-Arab", "sr-Latn", "uz-Cyrl", "zh-Hant"}  # the other script of a language, where CLDR names it
FAMILIES = {"bh", "nah"}
SPELLINGS = {"es": {"castellano"}, "hi": {"हिंदी"}, "zh": {"汉语", "漢語"}, "zh-Hant": {"繁體中文", "正體中文"}}  # other native names in daily use
locales = {p.name for p in Path(data_filename("trie")).iterdir() if p.name != "und" and Language.get(p.name).is_valid()}

def plain(tag):
    "`tag` without its territory, as the package spells it: Filipino is standardized Tagalog, known to datasets and detectors as tl"
    found = Language.get(tag).prefer_macrolanguage()
    usual = found.script == Language.make(found.language).maximize().script
    return Language.make(found.language, script=None if usual else found.script).to_tag().replace("fil", "tl")

def tags():
    "Every language that CLDR has a locale for, and every one with a two-letter code"
    codes = locales | {a + b for a in az for b in az if Language.make(a + b).is_valid()}
    return sorted({plain(c) for c in codes} - FAMILIES | SCRIPTS)

def names_in(code):
    "{name: tag} of all languages, as written in the language `code`; the names are in lower case"
    name_to_code("language", "", code)  # loads the table of names
    names = TRIES[f"{code}/name_to_language"].items()
    return {name: plain(tag.decode()) for name, tag in names if b".." not in tag and not "\U00010400" <= name < "\U00010450"}  # Deseret

def rows():
    english = names_in("en")
    for tag in tags():
        found = Language.get(tag)
        name, native = found.display_name(), found.autonym()
        own = names_in(tag) if tag in locales else {}
        others = {n for names in (own, english) for n, t in names.items() if t == tag} | SPELLINGS.get(tag, set())
        yield tag, name, native, "|".join(sorted(others - {name.casefold(), native.casefold()}))

if __name__ == "__main__":
    out = Path(__file__).parents[1] / "llmdata_nb/data/languages.tsv"
    out.write_text("".join("\t".join(row) + "\n" for row in rows()), encoding="utf-8")
