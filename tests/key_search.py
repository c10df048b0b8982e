"A key that cannot be overlooked: the shapes a server may send it back in, and the search for what is left of it."
import base64
import html
import json
import re
import sqlite3
import zlib
from pathlib import Path
from urllib.parse import quote, unquote

KEY = "sk-No/where+Found=7Qx9Zt4Vb2Lm8Rk3Wd6"
LENGTH = 12  # so many characters of it in a row are a leak


def as_base64(text): return base64.b64encode(text.encode()).decode()


SHAPES = {  # what it is called → the key as a server may repeat it
    "as it is": KEY,
    "escaped slash": KEY.replace("/", "\\/"),
    "escaped plus": KEY.replace("+", "\\u002b"),
    "all escaped": "".join(f"\\u{ord(letter):04X}" for letter in KEY),
    "URL-encoded": quote(KEY, safe=""),
    "twice URL-encoded": quote(quote(KEY, safe=""), safe=""),
    "HTML entities": "".join(f"&#{ord(letter)};" if not letter.isalnum() else letter for letter in KEY),
    "two lines": f"{KEY[:19]}\n    {KEY[19:]}",
    "first 24": f"{KEY[:24]}…",
    "last 14": f"…{KEY[-14:]}",
    "base64": as_base64(KEY),
    "base64 of the header": as_base64(f"Bearer {KEY}")}


def windows(text, length):
    "All pieces of `length` characters in `text`"
    return {text[start:start + length] for start in range(len(text) - length + 1)}


def encoded_windows():
    "Pieces of the key in base64, wherever it begins in what was encoded"
    pieces = set()
    for shift in range(3):
        encoded = as_base64("." * shift + KEY)
        pieces |= windows(encoded[4:-4], 16)
    return pieces


PIECES = windows(KEY, LENGTH) | encoded_windows()


def unescaped(text):
    "`text` without the escapes of JSON, as far as they can stand for a character of a key"
    text = re.sub(r"\\+u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
    return re.sub(r"\\+n", "\n", text).replace("\\", "")


def readings(text):
    "`text`, and what someone may read in it"
    decoded = html.unescape(unquote(unquote(unescaped(text))))
    plain = [text, unescaped(text), unquote(text), html.unescape(text), decoded]
    return plain + [re.sub(r"\s+", "", each) for each in plain]


def leaks(text):
    "The pieces of the key in `text`"
    return sorted({piece for reading in readings(text) for piece in PIECES if piece in reading})


def unpacked(value):
    "A value of the store as text"
    if not isinstance(value, bytes): return str(value)
    try: return zlib.decompress(value).decode(errors="replace")
    except zlib.error: return value.decode(errors="replace")


def sqlite_text(path):
    "All that stands in the tables of the file at `path`"
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    tables = [name for (name,) in db.execute("select name from sqlite_master where type = 'table'")]
    rows = [row for table in tables for row in db.execute(f"select * from {table}")]
    db.close()
    return "\n".join(unpacked(value) for row in rows for value in row)


def parquet_text(path):
    "All rows of the file at `path`, and what its schema says"
    import pyarrow.parquet as pq
    table = pq.read_table(path)
    return f"{table.schema} {table.schema.metadata}" + json.dumps(table.to_pylist(), ensure_ascii=False, default=str)


READERS = {".sqlite": sqlite_text, ".parquet": parquet_text}


def leaks_in_files(folder):
    "File → what of the key stands in it, for all files below `folder`"
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if not path.is_file(): continue
        text = path.read_bytes().decode(errors="replace")
        if path.suffix in READERS: text += READERS[path.suffix](path)
        if pieces := leaks(text): found[str(path.relative_to(folder))] = pieces[:3]
    return found
