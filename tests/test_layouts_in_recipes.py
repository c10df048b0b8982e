"Public layouts, as their pages describe them, go through their recipes with no column renamed; and what a message holds goes with it to the training file."
import json

import pytest
from scripted_server import serve, translator_and_judge
from test_judge import ratings, responses

from llmdata_nb.aya import aya_preferences
from llmdata_nb.formats import write_format
from llmdata_nb.rerank import rerank_preferences
from llmdata_nb.rows import load_rows
from llmdata_nb.run import run
from llmdata_nb.translate import translate_and_judge

ASK, TELL = "Please explain why leaves turn yellow, number {n}", "Leaves lose their green colour when the days get short, number {n}"
GOOD, BAD = "The answer {n}0 of a large model", "The answer 1 of a small one"


def sharegpt(n): return [{"from": "human", "value": ASK.format(n=n)}, {"from": "gpt", "value": TELL.format(n=n)}]
def messages(n, answer=TELL, **fields): return [{"role": "user", "content": ASK.format(n=n)} | fields, {"role": "assistant", "content": answer.format(n=n)} | fields]


LAYOUTS = {
    "FineTome": (translate_and_judge, lambda n: {"conversations": sharegpt(n), "source": "code_feedback", "score": 4.9}),
    "Capybara": (translate_and_judge, lambda n: {"source": "EverythingLM", "conversation": [{"input": ASK.format(n=n), "output": TELL.format(n=n)}]}),
    "WildChat": (translate_and_judge, lambda n: {"conversation_hash": f"h{n}", "model": "gpt-4", "timestamp": "2024-01-01", "turn": 1, "language": "English", "redacted": False, "toxic": False,
                                                 "conversation": messages(n, language="English", toxic=False, turn_identifier=n), "openai_moderation": [{"flagged": False}]}),
    "smoltalk": (translate_and_judge, lambda n: {"messages": messages(n), "category": "advice-seeking", "difficulty": None, "quality": "good", "reward_model_score": 0.1, "conversation_tokens": 40, "source": "smol-magpie-ultra"}),
    "evol-dpo": (rerank_preferences, lambda n: {"prompt": ASK.format(n=n), "chosen": messages(n, GOOD), "rejected": messages(n, BAD), "question": ASK.format(n=n), "source": "evol"}),
    "UltraFeedback": (rerank_preferences, lambda n: {"source": "flan", "instruction": ASK.format(n=n), "models": ["a", "b", "c"], "correct_answers": ["None"], "incorrect_answers": ["None"],
                                                     "completions": [{"model": m, "response": r.format(n=n), "overall_score": 7.0, "principle": "honesty", "annotations": {"truthfulness": {"Rating": "5"}}} for m, r in zip("abc", (GOOD, "", BAD))]}),
    "Aya": (aya_preferences, lambda n: {"inputs": ASK.format(n=n), "targets": GOOD.format(n=n), "language": "Italian", "language_code": "ita", "annotation_type": "original-annotations", "user_id": "u"})}


def answer(body, n=0):
    "A model that translates, judges, compares, and answers"
    if "ratings" in json.dumps(body.get("response_format")): return ratings(*(5 if "large" in text else 1 for text in responses(body)))
    if "response_format" in body: return translator_and_judge(body, n)
    return "The answer 2 of a small one"


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_public_layout_goes_through_its_recipe(name, tmp_path):
    recipe, record = LAYOUTS[name]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(record(n)) for n in range(1, 4)))
    with serve(answer) as (model, bodies):
        outcome = run(load_rows(file), recipe, model=model, language="it", out=tmp_path / "out", store=tmp_path / "s.sqlite")
    assert len(outcome.kept) == 3, [row["reason"] for row in [*outcome.dropped, *outcome.failed]]
    format = "trl_sft" if recipe is translate_and_judge else "trl_preference"
    lines = [json.loads(line) for line in write_format(outcome.kept, tmp_path / "made", format)[0].read_text().splitlines()]
    assert len(lines) == 3
    if format == "trl_preference": assert all("large" in line["chosen"][0]["content"] for line in lines)


def test_tools_reasons_and_weights_reach_the_training_file(tmp_path):
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
    talk = [{"role": "user", "content": "Please say how cold it is in Oslo, number 4"}, {"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": '{"degrees": 4}'},
            {"role": "assistant", "content": "It is quite cold in the city of Oslo, number 4", "reasoning_content": "The tool says that it is cold, number 4", "weight": 0},
            {"role": "user", "content": "Please say the same once more, number 4"}, {"role": "assistant", "content": "It is still quite cold in Oslo, number 4"}]
    bad = {"prompt": "Please say why it is cold, number 5", "completion": "Because it is what it is, number 5", "label": False}
    rows = load_rows([{"id": "oslo", "messages": talk, "tools": tools}, bad | {"id": "bad"}, {"id": "seen", "messages": messages(6), "images": ["a.png"]}])
    with serve(translator_and_judge) as (model, bodies):
        outcome = run(rows, translate_and_judge, model=model, language="it", out=tmp_path / "out", store=tmp_path / "s.sqlite", multi_turn=True)
    (kept,), (dropped,), (failed,) = outcome.kept, outcome.dropped, outcome.failed
    assert "marked as a bad one" in dropped["reason"] and "has images" in failed["reason"]
    path, lines = write_format([kept], tmp_path / "made", "axolotl_sft")
    made = json.loads(path.read_text())
    assert [m["role"] for m in made["messages"]] == [m["role"] for m in talk] and made["messages"][2]["content"] == '{"degrees": 4}'
    assert json.loads(made["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"city": "Oslo"} and made["messages"][3]["weight"] == 0
    assert made["messages"][3]["reasoning_content"].startswith("Questa è") and made["tools"][0]["function"]["name"] == "weather"
    assert "images" not in json.dumps([body["messages"] for body in bodies]) and load_rows(path)[0]["messages"][3]["weight"] == 0


def test_a_request_of_low_quality_is_not_translated(tmp_path):
    tags = {"intent": "a fact", "knowledge": "biology", "difficulty": "easy", "quality_explanation": "So.", "category": "information seeking", "other_categories": []}
    def tagging(body, n=0):
        if "quality_explanation" not in json.dumps(body.get("response_format")): return translator_and_judge(body, n)
        return json.dumps(tags | {"quality": "poor" if "number 2" in body["messages"][0]["content"] else "good"})
    rows = load_rows([{"id": str(n), "messages": messages(n)} for n in range(1, 4)])
    with serve(tagging) as (model, bodies):
        outcome = run(rows, translate_and_judge, model=model, language="it", min_quality="average", out=tmp_path / "out", store=tmp_path / "s.sqlite")
    assert [row["id"] for row in outcome.kept] == ["1", "3"] and [row["reason"] for row in outcome.dropped] == ["instruction: quality poor, kept from average"]
    calls = {line["step"]: line["calls"] for line in json.loads((tmp_path / "out" / "manifest.json").read_text())["calls"]}
    assert calls["tag"] == 3 and calls["translate instruction"] == 2 and len(bodies) == sum(calls.values()) == 3 + 2 * 4
    wrong = run(rows, translate_and_judge, model=model, language="it", min_quality="best", store=tmp_path / "s.sqlite")
    assert len(wrong.failed) == 3 and "min_quality 'best': expected very poor" in wrong.failed[0]["reason"] and not any(line["calls"] for line in wrong.ledger)
