"Templates of strangers: they see no key, end in time, and take little memory; and damaged files of models are one line"
import json
import os
import random
import resource
import struct
import threading
import time

import pytest
from llmdata_nb import sandbox
from llmdata_nb.sandbox import MEMORY, SECONDS, render_apart
from llmdata_nb.templates import read_template, render

HELLO = [{"role": "user", "content": "Hello"}]


def test_the_other_process_has_no_key(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sk-secret-4711")
    sandbox._stop_process()
    render("x", HELLO)
    pid = sandbox._Renderer.process.pid
    with open(f"/proc/{pid}/environ", "rb") as file: environment = file.read()
    assert b"sk-secret" not in environment and b"SOME_API_KEY" not in environment
    assert {entry.split(b"=")[0] for entry in environment.split(b"\0")} <= {b"", *(name.encode() for name in sandbox._NEEDED)}


@pytest.mark.parametrize("template", [
    "{{ 'a' * 3000000000 }}", "{{ 'x'.ljust(3000000000) }}", "{{ 'x'.center(2**33) }}", "{{ ['x'] * 10**10 }}", "{{ 10**(10**9) }}",
    "{% set t = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set t.x = t.x ~ t.x %}{% endfor %}{{ t.x }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ 'a' * 5000000 }}", "{{ '%9999999999d' % 1 }}"])
def test_what_takes_too_much_is_refused_and_the_next_render_works(template):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ValueError, match="chat template: "): render(template, HELLO)
    assert time.monotonic() - began < 4 * SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
    assert render("{{ messages[0].content }}", HELLO) == "Hello"


def test_a_template_without_an_end_is_stopped_once_and_not_tried_again(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
    with pytest.raises(ValueError, match="it was stopped"): render_apart(loops, {})
    stopped = sandbox._Renderer.process
    with pytest.raises(ValueError, match="it was stopped"): render_apart(loops, {})
    assert sandbox._Renderer.process is stopped, "asked again"
    assert render_apart("{{ 1 }}", {}) == "1" and sandbox._Renderer.process is not stopped


def test_an_interrupt_leaves_nothing_for_the_next_render(monkeypatch):
    render_apart("{{ 1 }}", {})
    process = sandbox._Renderer.process
    def interrupted(): raise KeyboardInterrupt
    monkeypatch.setattr(process.stdout, "readline", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt): render_apart("{{ 'the old one' }}", {})
    process.wait(20)
    assert render_apart("{{ 'the new one' }}", {}) == "the new one"


def test_many_threads_and_a_fork_get_their_own_answers():
    texts = {}
    def work(i): texts[i] = [render_apart("{{ x }}", {"x": f"{i}-{j}"}) for j in range(50)]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert texts == {i: [f"{i}-{j}" for j in range(50)] for i in range(8)}
    read, write = os.pipe()
    pid = os.fork()
    if not pid:  # in the child of a fork, which must not use the pipes of its parent
        try: os.write(write, render_apart("{{ x }}", {"x": "forked"}).encode())
        finally: os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b"forked" and render_apart("{{ x }}", {"x": "parent"}) == "parent"


def test_odd_texts_come_through_as_they_are():
    odd = "ü 漢字 \u2028 \x00 \r\n \ud83d end"
    assert render_apart("{{ x }}", {"x": odd}) == odd


def gguf(*entries):
    "The bytes of a GGUF header with these entries: (key, type, packed value)"
    def text(value): return struct.pack("<Q", len(value)) + value.encode()
    body = b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in entries)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + body


def packed(value): return struct.pack("<Q", len(value)) + value.encode()


TEMPLATE = ("tokenizer.chat_template", 8, packed("{{ messages[0].content }}"))
DAMAGED = {
    "ends early": gguf(TEMPLATE)[:60], "no entries": gguf()[:10], "unknown type": gguf(("a", 77, b"")),
    "a text longer than any file": gguf(("a", 8, struct.pack("<Q", 2**62))), "a list without an end": gguf(("a", 9, struct.pack("<IQ", 8, 2**40))),
    "lists in lists": gguf(("a", 9, struct.pack("<IQ", 9, 3))), "a list of texts of an unknown type": gguf(("a", 9, struct.pack("<IQ", 55, 3))),
    "more entries than can be": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**50), "a template that is a number": gguf(("tokenizer.chat_template", 4, struct.pack("<I", 3))),
    "a token beyond the vocabulary": gguf(TEMPLATE, ("tokenizer.ggml.bos_token_id", 4, struct.pack("<I", 99)), ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 0))),
    "a token without a vocabulary": gguf(TEMPLATE, ("tokenizer.ggml.bos_token_id", 4, struct.pack("<I", 99))),
    "a seek beyond all": gguf(("a", 9, struct.pack("<IQ", 10, 2**61)))}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_gguf_file_is_one_line(tmp_path, name):
    path = tmp_path / "model.gguf"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ValueError, match="model.gguf: (not a sound GGUF file|no tokenizer)"): read_template(str(path))


def test_any_damage_to_a_gguf_file_is_a_value_error(tmp_path):
    whole = gguf(TEMPLATE, ("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 1)), ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + packed("a") + packed("b")))
    path, dice = tmp_path / "model.gguf", random.Random(0)
    path.write_bytes(whole)
    assert read_template(str(path)).eos == "b"
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 4)): data[dice.randrange(4, len(data))] = dice.choice((0, 1, 8, 9, 127, 255))
        path.write_bytes(data[:dice.randint(8, len(data))])
        try: read_template(str(path))
        except ValueError as e: assert "model.gguf" in str(e)


def test_a_sparse_file_of_empty_texts_takes_no_time(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(("a", 9, struct.pack("<IQ", 8, 400_000_000))))
    os.truncate(path, 4 * 10**9)
    began = time.process_time()
    with pytest.raises(ValueError, match="400,000,000 texts in a list"): read_template(str(path))
    assert time.process_time() - began < 5


@pytest.mark.parametrize("config", [
    "[1]", "{", '{"chat_template": [{"x": 1}]}', '{"chat_template": [1]}', '{"chat_template": "x", "bos_token": {"a": 1}}', '{"chat_template": "x", "bos_token": 3}', "[" * 100_000, "\x00"])
def test_a_damaged_tokenizer_file_is_one_line(tmp_path, config):
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(ValueError, match=str(tmp_path)): read_template(str(tmp_path))


def test_a_template_in_no_known_encoding_names_its_file(tmp_path):
    (tmp_path / "own.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="own.jinja: not a sound text in UTF-8"): read_template(str(tmp_path / "own.jinja"))
    (tmp_path / "chat_template.jinja").write_bytes(b"\xe9")
    with pytest.raises(ValueError, match="chat_template.jinja"): read_template(str(tmp_path))
