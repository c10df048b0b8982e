"The opening of a user's turn: against the Magpie authors' list, other people's exact renders, and templates that are wrong in every way."
import json
from pathlib import Path

import pytest
from scripted_server import serve

from llmdata_nb.embedded import weights_path
from llmdata_nb.magpie import pre_query
from llmdata_nb.models import Endpoint, endpoint
from llmdata_nb.templates import ChatTemplate, find_template, read_template, render, stops

SHARED = Path(__file__).parents[2] / "shared" / "data" / "chat_templates"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not here")


def lines(name): return [json.loads(line) for line in (SHARED / name).read_text(encoding="utf-8").splitlines()]


def hub():
    "Model → template and tokens, of huggingface.js's tests"
    return {d["name"]: (d["chat_template"], {k: v for k, v in d["data"].items() if k.endswith("_token")}) for d in lines("hfjs_expected_renders.jsonl")}


def authors(): return {d["model"]: d for d in lines("magpie_authors_pre_query_templates.jsonl")}


@needs_shared
def test_renders_are_exact():
    "All but three: one prints a Python dict where JavaScript prints JSON, one tells the date, one leaves out a last line end (which jinja2 takes off)"
    wrong = []
    for d in lines("hfjs_expected_renders.jsonl"):
        data = dict(d["data"])
        if render(d["chat_template"], data.pop("messages"), **data) != d["target"]: wrong.append(d["name"])
    assert wrong == ["MadeAgents/Hammer2.1", "ai21labs/AI21-Jamba-Large-1.6", "HuggingFaceTB/SmolLM3-3B"]


@needs_shared
def test_the_authors_prefixes_of_qwen():
    template, tokens = hub()["Qwen/Qwen2.5-7B-Instruct"]
    same = [model for model, d in authors().items() if d["pre_query_template"] == pre_query(template, **tokens)]
    assert same == [f"Qwen/Qwen2.5-{size}-Instruct" for size in ("1.5B", "7B", "Coder-7B", "14B", "Coder-32B")]
    chatml, tokens = hub()["_base"]
    assert [model for model, d in authors().items() if d["pre_query_template"] == pre_query(chatml, **tokens)] == ["Qwen/Qwen2-72B-Instruct", "Qwen/Qwen1.5-7B-Chat"]


@needs_shared
def test_the_authors_prefix_of_llama_lacks_the_dates_that_its_template_adds():
    template, tokens = hub()["meta-llama/Llama-3.1-8B-Instruct"]
    tokens["eos_token"] = "<|eot_id|>"
    theirs = authors()["meta-llama/Meta-Llama-3.1-8B-Instruct"]
    ours = pre_query(template, **tokens)
    start, dates, rest = ours.partition("<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>")
    assert dates and start + rest == theirs["pre_query_template"]
    system = theirs["pre_query_template_with_system_prompt"].split("<|end_header_id|>\n\n")[1].split("<|eot_id|>")[0]
    assert pre_query(template, system, **tokens).replace("Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n", "") == theirs["pre_query_template_with_system_prompt"]
    assert set(stops(template, **tokens)) <= set(theirs["stop_tokens"])


# the form of each family, in as few words as it takes; tokens; and how the authors' prefix differs from what the template says
FORMS = {
    "google/gemma-1.1-7b-it": ("{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}", "<bos>", lambda t: t),
    "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct": ("{{ bos_token }}{% for m in messages %}{{ m.role.capitalize() }}: {{ m.content }}\n\n{% endfor %}", "<｜begin▁of▁sentence｜>", lambda t: t),
    "meta-llama/Llama-2-7b-chat-hf": ("{% for m in messages %}{{ bos_token + '[INST] ' if m.role == 'user' }}{{ m.content }}{{ ' [/INST]' if m.role == 'user' }}{% endfor %}", "<s>", lambda t: t.replace("<s> ", "<s>")),
    "microsoft/Phi-3.5-mini-instruct": ("{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}", "<s>", lambda t: t.replace("<s> ", "<s>")),
    "lmsys/vicuna-7b-v1.5": ("{{ messages[0].content if messages[0].role == 'system' }}\n\n{% for m in messages if m.role != 'system' %}{{ m.role.upper() }}: {{ m.content }} {% endfor %}", "", lambda t: t),
}


@needs_shared
@pytest.mark.parametrize("model", FORMS)
def test_the_authors_prefixes_of_other_families(model):
    template, bos, like_template = FORMS[model]
    theirs = authors()[model]["pre_query_template"]
    system = theirs.partition("\n\n")[0] if "vicuna" in model else None
    assert pre_query(template, system, bos_token=bos) == like_template(theirs)


@needs_shared
def test_a_prefix_for_every_template_that_is_for_chats():
    "Of the 35, one wants functions before anything else, and one is of a guard, which shows no user text of its own"
    failed = {}
    for name, (template, tokens) in hub().items():
        for system in (None, "Rispondi in italiano."):
            try: opening = pre_query(template, system, **tokens)
            except ValueError as e: failed[name] = str(e)
            else: assert "Ywordof" not in opening and (not system or opening.count(system) == 1), name
    assert list(failed) == ["fireworks-ai/firefunction-v1", "meta-llama/Llama-Guard-3-11B-Vision"]
    assert "functions" in failed["fireworks-ai/firefunction-v1"] and "0 times" in failed["meta-llama/Llama-Guard-3-11B-Vision"]


@needs_shared
def test_stops_end_a_turn():
    found = {name: stops(template, **tokens)[:1] for name, (template, tokens) in hub().items() if "firefunction" not in name and "Guard" not in name}
    assert found["Qwen/Qwen2.5-7B-Instruct"] == ["<|im_end|>"] and found["mistralai/Mistral-Nemo-Instruct-2407"] == ["[/INST]"]
    assert found["Deci/DeciLM-7B-instruct"] == ["### Assistant:"] and found["openchat/openchat-3.5-0106"] == ["<|end_of_turn|>"]
    assert all(found.values())


def test_thinking_templates_do_not_stop_at_thinking():
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ '<think>\n\n</think>\n\n' if m.role == 'assistant' }}{{ m.content }}<|im_end|>\n{% endfor %}"
    assert stops(template) == ["<|im_end|>", "<|im_start|>"]


def test_only_the_first_llama_3_stops_at_the_end_of_a_line():
    llama = "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    assert "\n" in stops(llama) and "\n" not in stops("{# Environment: ipython #}" + llama)


@pytest.mark.parametrize("template, message", [
    ("{% for m in messages %}", "chat template: "), ("{{ raise_exception('no') }}", "chat template: no"), ("nothing", "stands in it 0 times"),
    ("{{ messages[0].content }}{{ messages[0].content }}", "stands in it 2 times"), ("{{ messages[9].content.x }}", "chat template: "), ("{{ 1 / 0 }}", "chat template: "),
    ("{{ ''.__class__.__mro__ }}{{ messages[0].content }}", "chat template: "), ("{% for i in range(999999999) %}x{% endfor %}", "chat template: ")])
def test_bad_templates_are_one_line(template, message):
    with pytest.raises(ValueError, match="chat template: ") as e: pre_query(template)
    assert message in str(e.value)


def test_the_first_token_is_left_to_the_engine():
    template = ChatTemplate("{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}", "<s>", "</s>")
    assert template.opening() == "[INST] " and pre_query(template.text, bos_token="<s>") == "<s>[INST] " and "<s>" not in template.stops()


def test_files_of_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old {{ messages[0].content }}", "bos_token": None, "eos_token": {"content": "</s>"}}))
    assert read_template(str(tmp_path)).opening() == "old "
    (tmp_path / "chat_template.jinja").write_text("new {{ messages[0].content }}")
    for path in (tmp_path, tmp_path / "tokenizer_config.json", tmp_path / "chat_template.jinja"):
        found = read_template(str(path))
        assert found.opening() == "new " and found.eos == "</s>"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="no chat template in it"): read_template(str(tmp_path))


def test_gguf_and_the_embedded_server_tell_the_same():
    found = read_template(str(weights_path("smollm2-135m")[0]))
    assert found.opening("Be brief.") == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n" and found.bos == "<|im_start|>" and found.eos == "<|im_end|>"


def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match="x.gguf: not a GGUF file"): read_template(str(tmp_path / "x.gguf"))


def test_an_unknown_source_says_what_is_expected():
    with pytest.raises(ValueError, match="no such file; expected a .jinja, .gguf or tokenizer_config.json file, a folder, or a Hub id"): read_template("no-such-file.jinja")


def test_the_template_of_an_endpoint(monkeypatch, tmp_path):
    "From a server's /props; where it has none, a name that is on no Hub is one clear line"
    with serve(lambda body, n: "x") as (model, bodies):
        with pytest.raises(ValueError, match="does not tell its chat template, and 'm' is no name on the Hub"): find_template(endpoint(model))
        (tmp_path / "own.jinja").write_text("<u>{{ messages[0].content }}")
        assert find_template(endpoint(model), str(tmp_path / "own.jinja")).opening() == "<u>"


def test_the_key_goes_to_no_other_address():
    "A server that sends /props elsewhere is not followed"
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer
    seen = []
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(302 if self.path == "/props" else 200)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(b'{"chat_template": "stolen"}')
        def log_message(self, *_): return
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        with pytest.raises(ValueError, match="does not tell"): find_template(Endpoint(f"{url}#m", url, "m", "secret"))
    finally: server.shutdown()
    assert [path for path, _ in seen] == ["/props"]
