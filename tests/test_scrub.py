"A key that a server says back, in whatever spelling, is in no file, in no output, and at no other host."
import base64
import html
import json
import random
import re
import zlib
from urllib.parse import quote, unquote

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import said, serve

from llmdata_nb.limits import CallFailed
from llmdata_nb.models import Endpoint, EndpointError
from llmdata_nb.run import run
from llmdata_nb.scrub import know_key, scrub
from llmdata_nb.store import Store, call_key

KEY = "sk-proj-R7x/Qw2mV+9pLz4Tn8Yc=5Kd3Hb6Gs1Jf0"
WORDS = "sk-very-secret-for-the-tests"


def percent(text): return "".join(f"%{byte:02X}" for byte in text.encode())


SPELLINGS = {
    "plain": lambda key: key,
    "the first 24 characters": lambda key: key[:24],
    "twelve of the middle": lambda key: key[13:25],
    "its end": lambda key: key[-14:],
    "JSON": lambda key: key.replace("/", "\\/"),
    "JSON in JSON": lambda key: key.replace("/", "\\\\/").replace("+", "\\\\u002b"),
    "escaped for JSON": lambda key: "".join(f"\\u{ord(c):04x}" for c in key),
    "URL": lambda key: quote(key, safe=""),
    "URL, twice": lambda key: quote(quote(key, safe=""), safe=""),
    "each byte of the URL": percent,
    "HTML": lambda key: "".join(f"&#{ord(c)};" for c in key),
    "HTML, hexadecimal": lambda key: "".join(f"&#x{ord(c):X};" for c in key),
    "Python": lambda key: "".join(f"\\x{ord(c):02x}" for c in key),
    "over two lines": lambda key: key[:10] + "\r\n\t" + key[10:],
    "over two lines, escaped": lambda key: key[:10] + "\\r\\n" + key[10:],
    "a space between all": " ".join,
    "capitals": str.upper,
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 behind two bytes": lambda key: base64.urlsafe_b64encode(b"k=" + key.encode()).decode(),
    "base64 of the header": lambda key: base64.b64encode(b"Bearer " + key.encode()).decode(),
    "base64 in a URL": lambda key: quote(base64.b64encode(key.encode()).decode(), safe=""),
    "hexadecimal": lambda key: key.encode().hex(),
    "hexadecimal, capitals": lambda key: key.encode().hex(" ").upper()}


def pieces(text):
    "All that can be read out of `text`: spelled out, and decoded, in lower case and without spaces"
    found = [text]
    for _ in range(4):
        text = re.sub(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})", lambda m: chr(int(m[1] or m[2], 16)), html.unescape(unquote(text)))
        text = re.sub(r"\s|\\[nrt]", "", text).replace("\\", "")
        found.append(text)
    for run_of in re.findall("[0-9a-fA-F]{16,}", text):
        found += [bytes.fromhex(run_of[n:n + (len(run_of) - n) // 2 * 2]).decode("latin-1") for n in (0, 1)]
    for run_of in re.findall("[A-Za-z0-9+/_-]{12,}", text):
        ends = [run_of[n:n + (len(run_of) - n) // 4 * 4] for n in range(4)]
        found += [base64.b64decode(end, altchars="-_" if re.search("[-_]", end) else None).decode("latin-1") for end in ends]
    return "\n".join(found).lower()


def gives_away(text, key):
    "Twelve characters in a row of `key`, of those that no other word has"
    readable = pieces(text)
    return [key[i:i + 12] for i in range(7, len(key) - 11) if key[i:i + 12].lower() in readable]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_is_told_from_the_words_around_it(spelling):
    know_key(KEY)
    spelled = SPELLINGS[spelling](KEY)
    assert gives_away(spelled, KEY), "the test can read it"
    text = scrub(f'Wrong key: {spelled} (from the account "a & b", 5 %)')
    assert not gives_away(text, KEY) and text.startswith("Wrong key: ") and text.endswith(' (from the account "a & b", 5 %)') and len(text) < 90


@pytest.mark.parametrize("spelling", [name for name in SPELLINGS if "twelve" not in name and "end" not in name])
def test_a_key_that_is_made_of_words_is_known_as_a_whole(spelling):
    know_key(WORDS)
    text = scrub(f"Wrong key: {SPELLINGS[spelling](WORDS)} …")
    assert not [WORDS[i:i + 18] for i in range(len(WORDS) - 17) if WORDS[i:i + 18] in pieces(text)]


@pytest.mark.parametrize("key", ["EMPTY", "empty", "none", "not-needed", "lm-studio", "ollama", "dummy", "token", "no-key-required", "sk-no-key-required",
                                 "your-api-key", "aaaaaaaaaaaaaaaaaaaaaaaa", "123456789012345678901234", "0000000000", "internationalization", "Bearer", "", "x"])
def test_a_key_that_is_a_word_takes_nothing_out(key):
    know_key(key)
    for text in (key, f"The word {key} stands here.", key * 3, key.upper(), " ".join(key)): assert scrub(text) == text


@pytest.mark.parametrize("text", [
    "The very secret part of a well-known story, sk- and all: for the tests of 2024.", "f(x) = 100 % \\alpha & \\beta_12 + \\u00e8 &amp; &#233; %20",
    "https://example.org/a%20b?c=d&e=f#g", "3f9a1c77e0b2d4455aa01", "TmVpbiwgZGFzIGlzdCBrZWluIFNjaGzDvHNzZWw=", "İstanbul'da güneşli bir gün", "\ud83d lone"])
def test_an_ordinary_text_stays_to_the_letter(text):
    for key in (KEY, WORDS, "sk-international-relations-2024-x7"): know_key(key)
    assert scrub(text) == text


@given(st.text(st.sampled_from("abc \n\\/%&;ux0123456789İ…" + KEY), max_size=60), st.sampled_from(sorted(SPELLINGS)), st.text(max_size=20))
def test_whatever_stands_around_it(before, spelling, after):
    "Nothing raises, and what stands before and behind a space stays"
    know_key(KEY)
    text = scrub(f"{before} | {SPELLINGS[spelling](KEY)} | {after}")
    assert not set(gives_away(text, KEY)) - set(gives_away(before + after, KEY))
    assert scrub(text) == text


def test_errors_are_clean_from_the_start():
    know_key(KEY)
    for error in (CallFailed("server", f"\x1b]0;{KEY}\x07", "say"), EndpointError(f"\x1b[2J{percent(KEY)}\u202e")):
        assert "\x1b" not in str(error) and "\u202e" not in str(error) and not gives_away(str(error), KEY)


# A whole run

def chat(**parts):
    "The body of an answer with other `parts` in its choice"
    data = said("fine")
    data["choices"][0] |= parts
    return 200, data


def raw(head):
    "An answer of which nothing is made by a library"
    async def write(request):
        request.transport.write(head)
        request.transport.close()
        return web.Response()
    return write


def page(text, status=200):
    async def write(request): return web.Response(text=text, status=status, content_type="text/html")
    return write


PLACES = {  # where a server says the key
    "error message": lambda key: (400, {"error": {"message": f"Wrong key {key}"}}),
    "error text": lambda key: (401, {"error": f"Wrong key {key}"}),
    "another error": lambda key: (403, {"detail": [{"key": key}]}),
    "page": lambda key: page(f"<p>No {key}</p>", 404),
    "page of 200": lambda key: page(f"<p>Hello {key}</p>"),
    "200 of unknown form": lambda key: (200, {"choices": [key]}),
    "200 without an answer": lambda key: (200, {"key": key}),
    "finish reason": lambda key: chat(finish_reason=key),
    "finish reason without a text": lambda key: chat(finish_reason=key, message={"content": None}),
    "usage": lambda key: (200, said("fine") | {"usage": {"prompt_tokens": key}}),
    "cost": lambda key: (200, said("fine") | {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "cost": key}}),
    "text": lambda key: f"My key is {key}, what is yours?",
    "parts of a text": lambda key: chat(message={"content": [{"type": "text", "text": key[:9]}, {"type": "text", "text": key[9:]}]}),
    "tokens": lambda key: chat(logprobs={"content": [{"token": part, "logprob": -0.1, "top_logprobs": [{"token": part, "logprob": -0.1}]} for part in (key[:10], key[10:])]}),
    "likely tokens": lambda key: chat(logprobs={"content": [{"token": "a", "logprob": -0.1, "top_logprobs": [{"token": key, "logprob": -0.1}]}]}),
    "redirect": lambda key: (302, {}, {"Location": f"/v1/x?key={quote(key)}"}),
    "Retry-After": lambda key: (400, {"error": "no"}, {"Retry-After": quote(key)}),
    "line of the head": lambda key: raw(b"HTTP/1.1 200 OK\r\nX\x00Key " + repr(key).encode() + b"\r\n\r\n"),
    "first line": lambda key: raw(b"HTTP/1.1 abc " + repr(key).encode() + b"\r\n\r\n")}


async def say(row, ask):
    reply = await ask(f"Say {row['id']}", step="say", logprobs=2)
    return row | dict(said=reply.text, finish_reason=reply.finish_reason, logprobs=str(reply.logprobs))


def written(folder):
    "Each file below `folder`, and the texts that are packed in it"
    for path in folder.rglob("*"):
        if not path.is_file(): continue
        yield path.name, path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            import pyarrow.parquet
            yield path.name, str(pyarrow.parquet.read_table(path).to_pylist())
        if path.suffix == ".sqlite":
            with Store(path).errors() as db:
                for table in ("calls", "attempts", "limits", "forms"):
                    for row in db.execute(f"select * from {table}"):
                        for value in row: yield f"{path.name} {table}", _unpacked(value)


def _unpacked(value):
    if not isinstance(value, bytes): return str(value)
    try: return zlib.decompress(value).decode("utf-8", "replace")
    except zlib.error: return value.decode("latin-1")


def port_of(model): return re.search(r":(\d+)/", model)[1]


@pytest.mark.parametrize("spelling", ["plain", "the first 24 characters", "escaped for JSON", "JSON in JSON", "URL", "HTML", "over two lines",
                                      "base64 of the header", "hexadecimal"])
def test_a_key_that_the_server_says_stays_here(tmp_path, monkeypatch, capfd, spelling):
    monkeypatch.setattr(random, "uniform", lambda a, b: 0)
    def answer(body, n): return PLACES[body["messages"][0]["content"].removeprefix("Say ")](SPELLINGS[spelling](KEY))
    rows = [{"id": place} for place in PLACES]
    with serve(answer) as (model, bodies):
        monkeypatch.setenv(f"LLMDATA_API_KEY_127_0_0_1_{port_of(model)}", KEY)
        outcome = run(rows, say, model=model, store=tmp_path / "s.sqlite", out=tmp_path / "out", concurrency=8)
        again = run([{"id": "text"}], say, model=model, store=tmp_path / "s.sqlite")
    assert {body.headers["Authorization"] for body in bodies} == {f"Bearer {KEY}"}
    assert len(outcome.kept) + len(outcome.failed) == len(rows) and len(outcome.kept) >= 6 and again.kept
    shown = capfd.readouterr()
    for name, text in [*written(tmp_path), ("stdout", shown.out), ("stderr", shown.err), ("outcome", repr(outcome) + str(outcome.failed) + str(again.kept))]:
        assert not gives_away(text, KEY), f"{name}: {gives_away(text, KEY)[:1]}"


def test_a_list_of_models_with_the_key_in_it(tmp_path, monkeypatch):
    with serve(lambda body, n: (404, {"error": "no such model"}), models=(f"a-{KEY}", percent(KEY), "\x1b[2J")) as (model, bodies):
        monkeypatch.setenv(f"LLMDATA_API_KEY_127_0_0_1_{port_of(model)}", KEY)
        with pytest.raises(EndpointError, match="It lists a-…, …, ") as error: run([{"id": "a"}], say, model=model, store=tmp_path / "s.sqlite")
    assert not gives_away(str(error.value), KEY) and "\x1b" not in str(error.value)


def test_a_key_in_a_store_of_an_older_version_goes_no_further(tmp_path):
    path = tmp_path / "s.sqlite"
    with serve(lambda body, n: "fine") as (model, bodies):
        url, _, name = model.partition("#")
        body = dict(messages=[{"role": "user", "content": "Say a"}], temperature=0.0, max_tokens=2048, seed=0)
        store = Store(path)
        key = call_key(model, "/chat/completions", body | dict(logprobs=True, top_logprobs=2), None, 0)
        store.put(store.sending(key, step="say", model=model), step="say", model=model, text=f"It is {KEY}.", finish_reason=KEY,
                  logprobs=[[KEY, {KEY: 0.0}]], prompt_tokens=1, cached_tokens=0, completion_tokens=1, usd=None, seconds=0.1)
        store.close()
        know_key(KEY)
        outcome = run([{"id": "a"}], say, model=model, store=path, out=tmp_path / "out")
    assert not bodies and outcome.kept[0]["said"] == "It is …." and outcome.kept[0]["finish_reason"] == "…"
    for name, text in written(tmp_path / "out"): assert not gives_away(text, KEY), name


def test_an_endpoint_makes_its_key_known():
    Endpoint("x", "http://gpu/v1", "m", key="hf_QwErTyUiOpAsDfGhJkLzXcVb")
    assert scrub("hf_QwErTyUiOpAsDfGhJkLzXcVb") == "…" == scrub("TyUiOpAsDfGhJ")
