"What people call their columns, and how they write conversations: read as it is, named by hand, counted, or refused by name."
import json
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from llmdata_nb.layouts import SHAPES, read_columns, single_turn, to_messages
from llmdata_nb.rows import load_rows, stream_rows


def user(text): return {"role": "user", "content": text}
def assistant(text): return {"role": "assistant", "content": text}
def system(text): return {"role": "system", "content": text}


TALK = [user("Why is it dark?"), assistant("It's night.")]
LONG = [*TALK, user("And now?"), assistant("It is {\"day\"}.")]
LOST = [TALK[0], assistant("The lamp broke.")]


def read(record, **options): return to_messages(json.loads(json.dumps(record)), **options)


# messages, in all ways of writing

def as_sharegpt(talk): return [{"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in talk]
def as_numpy(talk): return "[" + "\n ".join(map(str, talk)) + "]"
def as_columns(talk): return {key: [m[key] for m in talk] for key in ("role", "content")}
def as_pairs(talk): return [{"input": a["content"], "output": b["content"]} for a, b in zip(talk[::2], talk[1::2])]
def as_parts(talk): return [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in talk]
def as_gemini(talk): return [{"role": m["role"].replace("assistant", "model"), "parts": [{"text": m["content"]}]} for m in talk]
def as_written(talk): return [m | {"role": f" {m['role'].title()}\n"} for m in talk]
def as_texts(talk): return [m["content"] for m in talk]


WAYS = [as_sharegpt, as_numpy, as_columns, as_pairs, as_parts, as_gemini, as_written, as_texts, json.dumps, str, list, lambda talk: {"messages": talk}, lambda talk: json.dumps({"conversation": talk})]


@pytest.mark.parametrize("column", ["messages", "conversations", "conversation", "contents", "Messages"])
@pytest.mark.parametrize("write", WAYS)
def test_a_conversation_in_any_way_of_writing(column, write):
    assert read({column: write(LONG), "topic": "light"}) == {"messages": LONG, "topic": "light"}


@pytest.mark.parametrize("write", [as_sharegpt, as_numpy, as_columns, as_parts, json.dumps, str, list])
def test_both_sides_of_a_pair_in_any_way_of_writing(write):
    row = {"messages": TALK[:1], "chosen": "It's night.", "rejected": "The lamp broke."}
    assert read({"chosen": write(TALK), "rejected": write(LOST)}) == row
    assert read({"prompt": "Why is it dark?", "chosen": write(TALK), "rejected": write(LOST)}) == row
    assert read({"prompt": write(TALK[:1]), "chosen": write(TALK[1:]), "rejected": write(LOST[1:])}) == row


def test_a_system_message_in_a_written_prompt_is_kept():
    prompt, sides = [system("Be kind"), TALK[0]], {"chosen": json.dumps(TALK), "rejected": json.dumps(LOST)}
    for written in (prompt, json.dumps(prompt), str(prompt)): assert read({"prompt": written} | sides)["messages"] == prompt
    assert read({"messages": TALK, "rejected_messages": LOST})["rejected"] == "The lamp broke."
    with pytest.raises(ValueError, match="different conversations"): read({"messages": TALK, "rejected_messages": [user("Who?"), assistant("I.")]})


def test_pairs_saved_as_csv(tmp_path):
    file = tmp_path/"pairs.csv"
    pd.DataFrame({"chosen": [TALK] * 2, "rejected": [LOST] * 2}).to_csv(file, index=False)
    assert [row["chosen"] for row in load_rows(file)] == ["It's night."] * 2 and load_rows(file)[0]["messages"] == TALK[:1]


@pytest.mark.parametrize("text", ["[1, 2]", '{"role": "user"}', "[{'a': 1}]", "{x} + {y}", '["a", "b"]', '[{"role": "cook", "content"', "Human: a word for people", "### Human nature"])
def test_a_text_that_only_looks_like_messages_stays_a_text(text):
    assert read({"prompt": text, "completion": text}) == {"messages": [user(text), assistant(text)]}
    assert read({"prompt": "Why?", "chosen": text, "rejected": "b"})["chosen"] == text and read({"text": text}) == {"text": text}


def test_messages_as_an_example_in_one_answer_stay_a_text():
    shown = json.dumps(TALK)
    assert read({"prompt": "Show me a conversation.", "chosen": shown, "rejected": "No."})["chosen"] == shown
    assert read({"instruction": "Show me a conversation.", "output": shown})["messages"][1]["content"] == shown


def test_nothing_in_a_text_is_run():
    for text in ("[__import__('os').getcwd()]", "[" * 5000, "[{'role': 'user', 'content': 'a'} for x in '1']"):
        assert "not JSON" in load_rows([{"messages": text}, {"messages": TALK}])[0]["failed"] or "deep" in load_rows([{"messages": text}, {"messages": TALK}])[0]["failed"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.text(min_size=1).filter(str.strip)] * 2), min_size=1, max_size=3))
def test_what_python_shows_is_read_back(turns):
    talk = [m for a, b in turns for m in (user(a), assistant(b))]
    if talk[0] == talk[1]: return
    for write in (str, as_numpy): assert to_messages({"messages": write(talk)})["messages"] == talk


def test_dialogues_with_labels():
    hh = "\n\nHuman: Why is it dark?\n\nAssistant: It's night.\n\nHuman: And now?\n\nAssistant: "
    row = read({"chosen": hh + "Day.", "rejected": hh + "Night."})
    assert row == {"messages": [*TALK, user("And now?")], "chosen": "Day.", "rejected": "Night."}
    assert read({"text": "### Human: Why is it dark?### Assistant: It's night."}) == {"messages": TALK}
    assert read({"prompt": hh, "answers": [{"answer": "Day.", "model": "m"}, {"answer": "Night.", "model": "n"}]})["messages"] == row["messages"]


# layouts

@pytest.mark.parametrize("request_column, answer_column", [
    ("query", "response"), ("input", "output"), ("prompt", "output"), ("instruction", "generation"), ("Question", "Answer"), ("problem", "solution"), ("user", "assistant"),
    ("instruction", "answer"), ("question", "output"), ("Prompt", "completion")])
def test_a_request_and_its_answer_by_many_names(request_column, answer_column):
    assert read({"x": 1, request_column: TALK[0]["content"], answer_column: TALK[1]["content"]}) == {"messages": TALK, "x": 1}


@pytest.mark.parametrize("record", [
    {"system": "Be kind", "input": "Why is it dark?", "chosen": "It's night.", "rejected": "The lamp broke."},
    {"system": "Be kind", "instruction": "Why is it dark?", "chosen-response": "It's night.", "rejected-response": "The lamp broke."},
    {"messages": [system("Be kind"), *TALK], "rejected_response": "The lamp broke."},
    {"query": "Why is it dark?", "response": "It's night.", "rejected_response": "The lamp broke.", "system": "Be kind"},
    {"conversations": as_sharegpt(TALK[:1]), "chosen": {"from": "gpt", "value": "It's night."}, "rejected": {"from": "gpt", "value": "The lamp broke."}, "system": "Be kind"},
    {"messages": [system("Be kind"), *TALK], "chosen": "It's night.", "rejected": "The lamp broke."},
    {"prompt": [system("Be kind"), TALK[0]], "chosen": TALK, "rejected": LOST},
    {"prompt": [system("Be kind"), TALK[0]], "chosen": TALK[1:], "rejected": LOST[1:]}])
def test_pairs_of_many_layouts(record):
    assert read(record) == {"messages": [system("Be kind"), TALK[0]], "chosen": "It's night.", "rejected": "The lamp broke."}


def test_earlier_turns_come_first():
    for history in ([["Why is it dark?", "It's night."]], TALK, json.dumps([["Why is it dark?", "It's night."]]), [["Why is it dark?", "It's night."], ["And now?", None]]):
        for record in ({"query": "And now?", "response": LONG[3]["content"]}, {"instruction": "And now?", "input": "", "output": LONG[3]["content"]}, {"messages": LONG[2:]}, {"messages": LONG}):
            assert read(record | {"history": history, "system": "Be kind"}) == {"messages": [system("Be kind"), *LONG]}
    pair = {"instruction": "And now?", "chosen": "Day.", "rejected": "Night.", "history": [["Why is it dark?", "It's night."]]}
    assert read(pair)["messages"] == LONG[:3]
    assert read({"question": "Who?", "answer": "I.", "history": "Founded in 753 BC."}) == {"messages": [user("Who?"), assistant("I.")], "history": "Founded in 753 BC."}


def test_first_turns_that_stand_twice_or_are_missing():
    counted = Counter()
    assert read({"messages": [TALK[0], *TALK]}, left_out=counted) == {"messages": TALK} and counted == {"first turns that stood twice": 1}
    for completion in (LONG, LONG[1:], LONG[3:]):
        prompt = LONG[:3] if completion == LONG[3:] else TALK[:1]
        assert read({"prompt": prompt, "completion": completion}) == {"messages": LONG}
    with pytest.raises(ValueError, match="begin differently"): read({"prompt": [user("Who?")], "completion": TALK})


def test_a_bad_answer_is_never_a_conversation():
    for label in (False, "false", "False"):
        for record in ({"prompt": TALK[:1], "completion": TALK[1:]}, {"instruction": TALK[0]["content"], "output": TALK[1]["content"]}, {"messages": TALK}):
            for column in ("label", "kto_tag"):
                assert read(record | {column: label}) == {"messages": TALK[:1], "rejected": "It's night.", column: label}
    assert read({"prompt": "Why is it dark?", "completion": "It's night.", "label": 0})["rejected"] == "It's night."
    for label in (True, "true", 1): assert read({"prompt": TALK[:1], "completion": TALK[1:], "label": label})["messages"] == TALK
    for label in (0, 1, "1.1", "spam", None): assert read({"instruction": TALK[0]["content"], "output": TALK[1]["content"], "label": label}) == {"messages": TALK, "label": label}


@pytest.mark.parametrize("columns, human", [
    (dict(response_a="x", response_b="y", winner="model_b"), 1), (dict(response_0="x", response_1="y", better_response_id=0), 0), (dict(response1="x", response2="y", overall_preference=-2), 0),
    (dict(response_1="x", response_2="y", preference_strength=3), 1), (dict(output_1="x", output_2="y", label=2), 1), (dict(output_1="x", output_2="y", preference=1.5), "tie"),
    (dict(completion_a="x", completion_b="y", rank="a-is-slightly-better"), 0), (dict(response_a="x", response_b="y", winner="tie (bothbad)"), "tie"), (dict(response_a="x", response_b="y", winner="?"), None),
    (dict(conversation_a=[*TALK[:1], assistant("x")], conversation_b=[*TALK[:1], assistant("y")], winner="model_a", model_a="m", model_b="n"), 0)])
def test_two_answers_and_what_people_preferred(columns, human):
    asked = {} if "conversation_a" in columns else {"context": TALK[:1]} if "overall_preference" in columns else {"instruction": "Why is it dark?"}
    row = read(asked | columns)
    assert row["messages"] == TALK[:1] and row["responses"] == ["x", "y"] and row.get("human") == human
    assert ("models" in row) == ("model_a" in columns)


def test_answers_that_say_nothing_are_left_out_and_counted(capsys):
    record = {"instruction": "2+2?", "models": ["a", "b", "c"], "completions": [{"model": "a", "response": "4", "critique": "ok"}, {"model": "b", "response": " "}, {"model": "c", "response": "5"}]}
    rows = load_rows([record, record, {"instruction": "2+2?", "completions": [{"response": ""}, {"response": None}]}])
    assert rows[0]["responses"] == ["4", "5"] and rows[0]["models"] == ["a", "c"] and "no answer says anything" in rows[2]["failed"]
    assert "empty answers (4)" in capsys.readouterr().out
    assert read({"question": "2+2?", "answers": {"text": ["4", "four"], "start": [0, 3]}})["responses"] == ["4", "four"]


def test_trees_whole_and_flat():
    def node(n, parent, role, text, **more): return {"message_id": n, "parent_id": parent, "role": role, "text": text, "lang": "en"} | more
    flat = [node("a", None, "prompter", "Why is it dark?"), node("b", "a", "assistant", "The lamp broke.", rank=1), node("c", "a", "assistant", "It's night.", rank=0),
            node("d", "c", "prompter", "And now?"), node("e", "d", "assistant", "Day."), node("f", "e", "prompter", "Thanks"), node("g", None, "prompter", "Hello"), node("h", "x", "assistant", "Hi")]
    rows = load_rows(flat)
    assert rows[0] == {"id": "a", "messages": [*TALK, user("And now?"), assistant("Day.")], "language": "en"} and len(rows) == 2
    assert "the parents of 1 messages are not in this tree, the first of them h" in rows[1]["failed"]
    tree = {"message_tree_id": "a", "prompt": flat[0] | {"replies": [flat[1] | {"replies": []}, flat[2] | {"replies": []}]}}
    assert read(tree) == {"messages": TALK, "language": "en", "message_tree_id": "a"}


# columns named by hand

def test_columns_named_by_hand():
    record = {"id": 3, "q": {"text": "Why is it dark?", "lang": "en"}, "a": "It's night.", "prompt": "a template", "messages": [user("other")]}
    row = read(record, named=read_columns("prompt=q.text, response=a"))
    assert row == {"messages": TALK, "id": 3, "q": {"text": "Why is it dark?", "lang": "en"}, "source_prompt": "a template"}
    assert load_rows([record], columns={"prompt": "q.text", "response": "a", "id": "a"})[0]["id"] == "It's night."
    assert list(stream_rows([{"body": "Rain."}], columns="text=body"))[0]["text"] == "Rain."
    assert read({"good": "a", "bad": "b", "ask": "c"}, named=read_columns("instruction=ask,chosen=good,rejected=bad")) == {"messages": [user("c")], "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize("columns, words", [("question", "expected ours=theirs"), ("prompt=a,prompt=b", "given twice"), ("promt=a", "did you mean 'prompt'"), ("=a", "expected ours=theirs"),
                                            ("prompt=q,response=c", "there is no column 'c'"), ("prompt=q,response=aa", "did you mean 'a'"), ("prompt=q.text,response=a", "there is no column 'q.text'")])
def test_slips_in_columns_are_told_before_a_run(columns, words):
    with pytest.raises(ValueError, match=words): load_rows([{"q": "x", "a": "y"}] * 3, columns=columns)


def test_an_unknown_layout_says_how_to_name_it():
    for record, example in (({"title": "Rain", "article": "It rained."}, 'columns="prompt=title,response=article"'), ({"n": 1, "body": "It rained."}, 'columns="text=body"'), ({"prompt": "Why?"}, 'columns="text=prompt"')):
        with pytest.raises(ValueError) as e: load_rows([record])
        assert example in str(e.value)
        load_rows([record], columns=example.split('"')[1])


# what a message holds beside its text

def test_fields_of_messages_are_carried_counted_or_refused(capsys):
    calls = [{"id": "1", "type": "function", "function": {"name": "sky", "arguments": '{"at": "noon"}'}}]
    talk = [user("Why?") | {"name": "Anna", "timestamp": 5, "weight": 0.0, "images": []}, assistant(None) | {"tool_calls": calls, "weight": 1}, {"role": "tool", "content": "dark", "tool_call_id": 1},
            assistant("Night.") | {"reasoning_content": "Hm.", "train": False, "toxic": False}]
    rows = load_rows([{"messages": talk}, {"messages": talk}])
    assert rows[0]["messages"] == [user("Why?") | {"name": "Anna"}, assistant("") | {"tool_calls": calls}, {"role": "tool", "content": "dark", "tool_call_id": "1"}, assistant("Night.") | {"reasoning_content": "Hm.", "weight": 0}]
    said = capsys.readouterr().out
    assert "left out while reading: " in said and "timestamp of messages (2)" in said and "toxic of messages (2)" in said
    for unwanted in ({"weight": "0"}, {"train": "False"}, {"loss": 0}, {"trainable": False}): assert read({"messages": [TALK[0], TALK[1] | unwanted]})["messages"][1]["weight"] == 0
    assert read({"messages": [TALK[0], TALK[1] | {"loss": 0.73}]})["messages"] == TALK
    for bad, words in (({"weight": 0.5}, "weight is 0.5"), ({"audio": {"id": 1}}, "has audio, and only text"), ({"tool_calls": ["x"]}, "expected a list of calls")):
        assert words in load_rows([{"messages": [user("Why?"), assistant("So.") | bad]}, {"messages": TALK}])[0]["failed"]
    for side in ("chosen", "rejected"):
        pair = {"prompt": "Why?", "chosen": [assistant("So.")], "rejected": [assistant("No.")]}
        pair[side][0]["reasoning_content"] = "Hm."
        with pytest.raises(ValueError, match=f"{side} has reasoning_content"): read(pair)


@pytest.mark.parametrize("call, name", [({"role": "assistant", "content": None, "function_call": {"name": "sky", "arguments": {"at": "noon"}}}, "sky"), ({"from": "function_call", "value": '{"name": "sky", "arguments": {"at": "noon"}}'}, "sky"),
                                        ({"role": "tool_call", "content": '[{"name": "sky", "parameters": {"at": "noon"}}]'}, "sky"), ({"role": "assistant", "content": "", "tool_calls": '[{"function": {"name": "sky", "arguments": "{\\"at\\": \\"noon\\"}"}}]'}, "sky")])
def test_calls_of_tools_in_many_ways_of_writing(call, name):
    row = read({"messages": [user("Why?"), call, {"role": "observation", "content": "dark"}, assistant("Night.")], "tools": [{"name": name}]})
    assert row["messages"][1] == assistant("") | {"tool_calls": [{"type": "function", "function": {"name": name, "arguments": '{"at": "noon"}'}}]} and row["messages"][2]["role"] == "tool"
    assert json.loads(row["tools"]) == [{"name": name}]
    with pytest.raises(ValueError, match="answers no call"): read({"messages": [user("Why?"), assistant("<tool_call>"), {"role": "tool", "content": "dark"}, assistant("Night.")]})


def test_parts_of_other_kinds_fail_even_with_a_text():
    for part in ({"type": "image", "text": "", "image": "x.png"}, {"type": "input_audio", "text": "hi"}, {"text": "What?", "image": {"bytes": b"0"}}, {"type": "tool_use", "text": "…"}):
        rows = load_rows([{"messages": [user([{"type": "text", "text": "So: "}, part]), TALK[1]]}, {"messages": TALK}])
        assert "parts that are not text" in rows[0]["failed"], part
    assert read({"messages": [user([{"type": "text", "text": "Why is it dark?", "image": None}]), TALK[1]]})["messages"] == TALK


def test_what_the_conversation_does_not_say_stays_or_is_counted():
    pair = {"chosen": TALK, "rejected": LOST}
    assert read({"instruction": "Why is it dark?", "input": "a text of its own"} | pair)["input"] == "a text of its own"
    assert read({"prompt": json.dumps(TALK[:1]), "completion": "It's night.", "context": "a note"})["context"] == "a note"
    assert "input" not in read({"instruction": "Sum up.", "input": "A text.", "output": "So."})
    for record in ({"messages": TALK, "Input": 1, "Label": "x"}, {"text": "Rain.", "Label": "x"}): assert read(record) == record
    counted = Counter()
    read({"prompt": "<s>something else"} | pair, left_out=counted)
    read({"prompt": "Why is it dark?", "messages": [user("Who?")]} | pair, left_out=counted)
    assert counted == {"texts of prompt that the conversation does not have": 1, "the column messages beside the conversation": 1}
    for prompt, talk in (("Why is it dark?", TALK), ("Why is it dark?", TALK[:1]), ("Why", [])): read({"prompt": prompt, "messages": talk} | pair, left_out=counted)
    assert sum(counted.values()) == 2


@pytest.mark.parametrize("media", [{"images": ["a.png"]}, {"image": {"bytes": b"\x89PNG", "path": None}}, {"audio": "a.wav"}, {"video_url": "http://x"}, {"jpg": b"\xff\xd8"}, {"shown": [{"bytes": b"\xff\xd8", "path": None}]}])
def test_rows_with_media_fail_by_name(media):
    rows = load_rows([{"messages": TALK} | media, {"messages": TALK} | dict.fromkeys(media, {"bytes": None, "path": None})])
    assert f"the row has {[*media][0]}, and only text is supported" in rows[0]["failed"] and rows[1]["messages"] == TALK


def test_a_single_turn_goes_on_to_the_answer_after_a_tool():
    calls = assistant("") | {"tool_calls": [{"type": "function", "function": {"name": "sky", "arguments": "{}"}}]}
    tool = {"role": "tool", "content": "dark"}
    assert single_turn([system("s"), user("a"), user("b"), calls, tool, assistant("Night."), user("c"), assistant("d")]) == [system("s"), user("a\n\nb"), calls, tool, assistant("Night.")]
    assert single_turn([assistant("Welcome!"), user("a") | {"name": "Anna"}, assistant("b") | {"weight": 0}, assistant("c")]) == [user("a") | {"name": "Anna"}, assistant("b") | {"weight": 0}]


def test_settled_columns_that_are_false_say_nothing():
    assert load_rows([{"messages": TALK, "dropped": False, "failed": False}])[0]["messages"] == TALK


def test_every_shape_is_read():
    values = {"messages": TALK, "conversations": TALK, "conversation": TALK, "contents": TALK, "conversation_a": TALK, "conversation_b": LOST, "text": "Why is it dark?"}
    for shape in SHAPES:
        record = {column: values.get(column, ["a", "b"] if column in ("responses", "completions", "generations", "answers") else f"the {column}") for column in shape}
        if shape == ("chosen", "rejected"): record = {"chosen": TALK, "rejected": LOST}
        if len(shape) == 3 and shape[1:] == ("chosen", "rejected") and shape[0] in values: record["chosen"] = "It's night."
        assert {"messages", "text"} & {*to_messages(record)}, shape
