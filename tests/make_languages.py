"""Write llmdata_nb/data/languages.tsv (tag, English name, native name, other names) from CLDR's names in langcodes: python tests/make_languages.py

The package reads that small table, because importing all those names takes about a second and 340 MB each time."""
from pathlib import Path
from string import ascii_lowercase as az

from babel import Locale, localedata
from langcodes import Language
from language_data.names import TRIES, name_to_code
from language_data.util import data_filename

SCRIPTS = {"az-Cyrl", "bs-Cyrl", "hi-Latn", "pa-Arab", "sr-Latn", "uz-Cyrl", "zh-Hans", "zh-Hant"}  # the other script of a language, where CLDR names it
FAMILIES = {"bh", "nah"}
UNNAMED = {"ro-MD", "sr-ME"}  # varieties that CLDR gives the name of a language of its own, which their speakers do not agree on
SPELLINGS = {"es": {"castellano"}, "hi": {"हिंदी"}, "zh": {"汉语", "漢語"}, "zh-Hans": {"simplified chinese", "简体中文", "簡體中文"}, "zh-Hant": {"繁體中文", "正體中文"}}  # other native names in daily use
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
    of_others = {name.casefold() for _, *names, others in varieties() for name in (*names, *others.split("|"))}
    for tag in tags():
        found = Language.get(tag)
        name, native = found.display_name(), found.autonym()
        own = names_in(tag) if tag in locales else {}
        others = {n for names in (own, english) for n, t in names.items() if t == tag} | SPELLINGS.get(tag, set())
        others -= of_others - SPELLINGS.get(tag, set()) | {name.casefold(), native.casefold()}
        if tag == "zh": others -= SPELLINGS["zh-Hans"] | {"simplified mandarin chinese", "现代标准汉语（简体）"}
        yield tag, name, native, "|".join(sorted(others))

def varieties():
    "The rows of the languages as they are spoken in a territory, where CLDR has a locale for that: pt-BR, es-419"
    english = Locale("en")
    for id in sorted(localedata.locale_identifiers()):
        code, _, territory = id.partition("_")
        tag = f"{code}-{territory}"
        if not (territory.isdigit() or len(territory) == 2) or plain(tag) != code: continue
        named = english.languages.get(id) if tag not in UNNAMED else None
        if not named and territory == Language.make(code).maximize().territory: continue
        name, native = english.languages.get(code), Locale(code).languages.get(code)
        if not name or not native or not Language.get(tag).is_valid(): continue
        own_name = Locale(code).languages.get(id) if named else None
        where, own = english.territories[territory].replace(" SAR China", ""), Locale(code).territories.get(territory)
        spelt = f"{name} ({where})"
        others = {other.casefold() for other in (spelt, own_name) if named and other}
        yield tag, named or spelt, f"{native} ({own or where})", "|".join(sorted(others))

if __name__ == "__main__":
    out = Path(__file__).parents[1] / "llmdata_nb/data/languages.tsv"
    out.write_text("".join("\t".join(row) + "\n" for row in (*rows(), *varieties())), encoding="utf-8")
