"Magpie: endpoints that are not fit end a run with advice, instructions are kept in one order, every row can be made again."
import json
import random
import re

import pytest
from scripted_server import judged_texts, serve, wrote

from llmdata_nb.dedup import near_duplicates
from llmdata_nb.languages import pack, packs
from llmdata_nb.magpie import advice, assistant_voice, compare_steering, instruct, instruction_problem, magpie, sanitise, seeds
from llmdata_nb.models import EndpointError
from llmdata_nb.run import run

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TOPICS = """la pesca nel lago d'inverno|i mulini a vento dell'Olanda|una torta di mele senza zucchero|il motore di un'automobile elettrica|le stelle cadenti di agosto|un orto sul balcone di casa
la grammatica del dialetto veneto|il prezzo del pane a Napoli|un viaggio in treno fino a Lisbona|la storia dei numeri negativi|un gatto che non vuole mangiare|le regole del gioco degli scacchi
la musica barocca per organo|una lettera al sindaco della città|il funzionamento di un termometro|i vulcani della Sicilia orientale|un esercizio sulle frazioni decimali|la differenza tra clima e tempo
un programma che ordina le parole|la potatura degli alberi da frutto|il bucato con il sapone di Marsiglia|una favola sulla volpe e il corvo|il bilancio di una famiglia numerosa|le maree nel mare del Nord""".replace("\n", "|").split("|")


def request(seed): return f"Potresti spiegarmi con parole semplici tutto quello che sai su {TOPICS[seed % len(TOPICS)]}?"


@pytest.fixture
def template(tmp_path):
    (tmp_path / "chat.jinja").write_text(CHATML)
    return str(tmp_path / "chat.jinja")


def model(write=request, answer=lambda body: "Ecco una spiegazione semplice, con un esempio preso dalla vita di tutti i giorni.", prompt_tokens=1):
    "A server that goes on from raw text with `write(seed)`, and answers chats"
    def said(body, n):
        if "messages" in body: return answer(body)
        text = "b" if body["prompt"] == "a" else write(body["seed"])
        return text if isinstance(text, tuple) else wrote(text, prompt_tokens)
    return serve(said)


def made(model, template, recipe=magpie, language="it", **options):
    return run(options.pop("rows", seeds()), recipe, model=model, language=language, template=template, **{"store": ":memory:", "concurrency": 4} | options)


def test_exactly_as_many_as_wanted_and_each_can_be_made_again(template):
    "One in three instructions is English: twelve are wanted, twelve come, and what is in a row is what was sent"
    with model(lambda seed: "What is the capital of France, and why is it so large?" if seed % 3 == 0 else request(seed)) as (reference, bodies):
        outcome = made(reference, template, until=12)
    assert len(outcome.kept) == 12 and len(outcome.kept) + len(outcome.dropped) == 18 and not outcome.failed
    assert {r["reason"].split(" (")[0] for r in outcome.dropped} == {"instruction: wrong language"}
    sent = {b["seed"]: b for b in bodies if b.get("prompt", "a") != "a"}
    assert len(sent) == 18 == len({r["user_turns"][0]["seed"] for r in [*outcome.kept, *outcome.dropped]})
    for row in outcome.kept:
        turn, response = row["user_turns"][0], row["response_from"]
        body = sent[turn["seed"]]
        assert all(body[k] == turn[k] for k in ("temperature", "max_tokens", "stop")) and body["prompt"] == turn["prefix"]
        assert turn["prefix"] == f"<|im_start|>system\n{pack('it')['magpie']['user']}<|im_end|>\n<|im_start|>user\n" and turn["temperature"] == 0.7
        assert row["messages"][0]["content"] == request(turn["seed"]) and row["detected_language"] == "it" and row["in_language"]
        (chat,) = [b for b in bodies if "messages" in b and b["messages"][-1] == row["messages"][0]]
        assert chat["messages"][0] == {"role": "system", "content": response["system"]} and (chat["seed"], chat["temperature"]) == (response["seed"], response["temperature"])


@pytest.mark.parametrize("language", packs())
def test_every_pack_steers(template, language):
    with model(lambda seed: f"x{seed}") as (reference, bodies): made(reference, template, instruct, language, rows=list(seeds(1)))
    assert pack(language)["magpie"]["user"].replace("{language}", "English") in bodies[-1]["prompt"]


def test_a_language_without_a_pack_gets_a_translated_message_once(template):
    "Welsh: the model translates the English message in one call, and all rows use it; where that is no good, the message stays English"
    welsh = "Rydych chi'n gynorthwyydd deallusrwydd artiffisial sy'n ateb cwestiynau defnyddwyr yn Gymraeg, yn ddefnyddiol ac yn fanwl. Mae'r defnyddiwr yn ysgrifennu yn Gymraeg ac yn gofyn cwestiynau o bob math, rhai ohonynt yn anodd."
    for text in (welsh, "I cannot do that."):
        with model(lambda seed: f"x{seed}", lambda body: json.dumps({"translation": text})) as (reference, bodies): outcome = made(reference, template, instruct, "cy", rows=list(seeds(6)))
        prompts = {r["user_turns"][0]["prefix"] for r in outcome.dropped}
        assert len(prompts) == 1 and (welsh if text == welsh else "The user writes in Welsh") in prompts.pop()
        assert sum("messages" in b for b in bodies) == (1 if text == welsh else 2)  # a faulty one is asked for once more


def test_near_duplicates_are_dropped_in_the_order_of_the_rows(template):
    "Whichever answers come first: the same rows are kept, and a second run calls nothing"
    def write(seed): return request(seed // 2) if seed % 2 else request(seed // 2).replace("semplici", "facili")
    kept = []
    for concurrency in (1, 8):
        def slow(body, n):
            if "messages" in body: return "Ecco una spiegazione semplice, con un esempio preso dalla vita di tutti i giorni."
            reply = wrote("b" if body["prompt"] == "a" else write(body["seed"]))
            async def later(request):
                import asyncio

                from aiohttp import web
                await asyncio.sleep(random.random() / 20)
                return web.json_response(reply[1])
            return later
        with serve(slow) as (reference, bodies): outcome = made(reference, template, until=10, concurrency=concurrency)
        kept.append([r["id"] for r in outcome.kept])
        assert {r["reason"].split(" of ")[0] for r in outcome.dropped} == {"instruction: near-duplicate"}
    assert kept[0] == kept[1] == [f"magpie-{i:06}" for i in range(0, 20, 2)]
    assert not any(near_duplicates([r["messages"][0]["content"] for r in outcome.kept]))


def test_a_second_run_pays_for_nothing(template, tmp_path):
    with model() as (reference, bodies):
        first = made(reference, template, until=8, store=tmp_path / "s.sqlite")
        paid = len(bodies)
        second = made(reference, template, until=8, store=tmp_path / "s.sqlite", concurrency=2)
        assert len(bodies) == paid and [r["messages"] for r in second.kept] == [r["messages"] for r in first.kept]
        more = made(reference, template, until=10, store=tmp_path / "s.sqlite")
        assert len(bodies) == paid + 4 and [r["id"] for r in more.kept[:8]] == [r["id"] for r in first.kept]


GREETING = "Hello! How can I help you today?"


@pytest.mark.parametrize("write, tokens, message", [
    (lambda seed: GREETING, 27, "one letter became 27 tokens"),
    (lambda seed: f"{'!' * seed} {GREETING}", None, "it greets, as 'Hello! How can I help you today?"),
    (lambda seed: request(0), 1, "five seeds gave the same text"),
    (lambda seed: (404, {"error": {"message": "Not Found"}}), 1, "refuses raw text"),
    (lambda seed: (400, {"error": {"message": "This is a chat model and not supported in the v1/completions endpoint"}}), 1, "refuses raw text")])
def test_an_endpoint_that_is_not_fit_ends_the_run_with_advice(template, write, tokens, message):
    with serve(lambda body, n: wrote(write(body["seed"]), tokens) if isinstance(write(body["seed"]), str) else write(body["seed"])) as (reference, bodies):
        with pytest.raises(EndpointError, match=re.escape(message)) as e: made(reference, template, until=1000)
    assert len(bodies) <= 12 and "\n" not in str(e.value) and re.search("Magpie needs an endpoint|Turn the cache off", str(e.value))


def test_a_model_that_writes_nothing_good_ends_the_run(template):
    with model(lambda seed: f"What is the {seed}th prime number, and how do you find it?") as (reference, bodies): outcome = made(reference, template, until=50)
    assert not outcome.kept and len(bodies) <= 106 and outcome.about["gave_up"] == "of the last 100 rows 0 were kept"
    assert "ended before 50 were kept: of the last 100 rows 0 were kept" in repr(outcome)
    (told,) = advice(outcome)
    assert re.match(r"10\d of 10\d rows are in another language: see with compare_steering", told)


def test_checks_left_out_by_name(template):
    "English requests and answers are kept where the checks of the language are left out; a wrong name costs nothing"
    english = dict(write=lambda seed: f"What is the {seed}th prime number, and how do you find it?", answer=lambda body: "One tries all the smaller ones, and this takes a while.")
    languages = ("wrong_language", "doubtful_language", "switches_language")
    with model(**english) as (reference, bodies): outcome = made(reference, template, rows=list(seeds(1)), skip_checks=languages)
    assert len(outcome.kept) == 1 and outcome.kept[0]["in_language"] is False
    with model(**english) as (reference, bodies): outcome = made(reference, template, rows=list(seeds(1)), skip_checks=("lenght_ratio",))
    assert "no check is named 'lenght_ratio'" in outcome.failed[0]["reason"] and not bodies


def test_a_server_that_breaks_down_ends_the_run(template):
    with model(lambda seed: request(seed) if seed < 3 else (400, {"error": {"message": "out of memory"}})) as (reference, bodies): outcome = made(reference, template, until=50)
    assert len(outcome.kept) == 3 and outcome.about["gave_up"] == "the last 20 rows failed" and len(outcome.failed) < 30


def test_a_spent_budget_ends_the_run(template):
    with model() as (reference, bodies): outcome = made(reference, template, until=50, budget="9 calls")
    assert len(bodies) == 9 and outcome.about["gave_up"] and "over budget" in outcome.failed[0]["reason"] and "spent" in advice(outcome)[0]


def test_wrong_options_cost_nothing(template):
    with model() as (reference, bodies):
        outcomes = [made(reference, template, recipe, rows=list(seeds(1)), **options) for recipe, options in
                    ((instruct, dict(steering="word", categories=True)), (magpie, dict(min_quality="best")), (instruct, dict(near=0)))]
        with pytest.raises(ValueError, match="near 0: expected"): compare_steering(reference, ["it"], near=0, template=template, store=":memory:")
        with pytest.raises(EndpointError, match="no such file"): made(reference, "nowhere.jinja", rows=list(seeds(1)))
    reasons = [outcome.failed[0]["reason"] for outcome in outcomes]
    assert "categories stand in the system message" in reasons[0] and "excellent" in reasons[1] and "near 0: expected" in reasons[2] and not bodies


def test_a_copy_of_the_system_message_is_no_request(template):
    with model(lambda seed: pack("it")["magpie"]["user"].split(".")[0] + f", numero {seed}." if seed % 2 else request(seed)) as (reference, bodies): outcome = made(reference, template, until=3)
    assert {r["reason"] for r in outcome.dropped} == {"instruction: copies the system message"} and len(outcome.dropped) == 2


def test_another_seed_gives_other_rows(template):
    with model(lambda seed: f"Spiegami il numero {seed} e la sua storia, con un esempio preso da {TOPICS[seed % 24]}.") as (reference, bodies):
        first, second = ({r["user_turns"][0]["seed"] for r in made(reference, template, until=8, seed=seed).kept} for seed in (0, 1))
    assert not first & second


def test_the_same_question_again_ends_a_conversation(template):
    with model() as (reference, bodies): outcome = made(reference, template, rows=list(seeds(1)), n_turns=3)
    assert outcome.kept[0]["ended"] == "turn 2: instruction: asked before" and len(outcome.kept[0]["messages"]) == 2


def test_a_token_budget_with_an_embedder(template):
    "An embedding has no completion tokens, and is counted all the same"
    with model() as (reference, _), serve(lambda body, n: (200, {"data": [{"embedding": [float(sum(map(ord, body["input"])) % 16 == i) for i in range(16)]}], "usage": {"prompt_tokens": 4}})) as (embedder, inputs):
        outcome = made({"default": reference, "embedder": embedder}, template, until=3, budget="5000 tokens")
    assert len(outcome.kept) == 3 and not outcome.failed


def test_the_request_that_tgi_and_vllm_take(template):
    with model() as (reference, bodies): made(reference, template, until=1)
    body = next(b for b in bodies if b.get("prompt", "a") != "a")
    assert "top_p" not in body and len(body["stop"]) <= 4 and body["skip_special_tokens"] is False


def test_several_turns(template):
    "The second opening holds the first exchange; a fault in the third turn ends the conversation, and the row is kept"
    def write(body, n):
        if "messages" in body: return f"Ecco la mia risposta semplice alla domanda, con un esempio: {len(body['messages'])}."
        turn = body["prompt"].count("<|im_start|>user")
        return wrote("b" if body["prompt"] == "a" else request(body["seed"]) if turn == 1 else "E che cosa consigli a chi comincia adesso?" if turn == 2 else "And what else could you tell me about all of this?")
    with serve(write) as (reference, bodies): outcome = made(reference, template, rows=list(seeds(2)), n_turns=4)
    row = outcome.kept[0]
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * 2 and row["ended"].startswith("turn 3: instruction: wrong language (en")
    assert [t["prefix"].count("<|im_start|>user") for t in row["user_turns"]] == [1, 2, 3] and row["messages"][1]["content"] in row["user_turns"][1]["prefix"]


def judged(body):
    "Five answers, of which those with more exclamation marks are judged better"
    if "response_format" not in body: return f"Ecco una risposta semplice alla domanda sull'argomento{'!' * (body['seed'] % 5)} Spero che sia chiara."
    _, *answers = [text for _, text in judged_texts(body["messages"][0]["content"])]
    return json.dumps({"ratings": [{"rationale": "Si vede.", "score": min(5, 1 + a.count("!"))} for a in answers]})


def test_preference_pairs(template):
    with model(answer=judged) as (reference, bodies): outcome = made(reference, template, rows=list(seeds(3)), answers=5, min_margin=2)
    assert len(outcome.kept) == 3
    for row in outcome.kept:
        assert row["prompt"] == [{"role": "user", "content": request(int(row["id"][-1]))}] and row["margin"] == 4
        assert "!!!!" in row["chosen"][0]["content"] and "!" not in row["rejected"][0]["content"] and len(row["responses"]) == 5


def test_equal_answers_never_become_a_pair(template):
    with model() as (reference, bodies): outcome = made(reference, template, rows=list(seeds(2)), answers=3)
    assert {r["reason"] for r in outcome.dropped} == {"response: fewer than two different answers without a fault"}


def test_filters_each_have_a_reason(template):
    tags = dict(intent="x", knowledge="x", difficulty="easy", quality_explanation="x", quality="good", category="math", other_categories=[])
    def answer(body):
        if "intent" in str(body.get("response_format")): return json.dumps(tags)
        if "score" in str(body.get("response_format")): return json.dumps({"rationale": "Non va.", "score": 2})
        return "Ecco una spiegazione semplice, con un esempio preso dalla vita di tutti i giorni."
    for option, reason in ((dict(min_quality="excellent"), "instruction: quality good, kept from excellent"), (dict(min_difficulty="hard"), "instruction: difficulty easy, kept from hard"),
                           (dict(min_length=500), "response: too short (81 characters, kept from 500)"), (dict(min_score=3), "response: judged too low (2, kept from 3)")):
        with model(answer=answer) as (reference, bodies): outcome = made(reference, template, rows=list(seeds(2)), **option)
        assert {r["reason"] for r in outcome.dropped} == {reason}
    with model(answer=answer) as (reference, bodies): outcome = made(reference, template, rows=list(seeds(1)), tags=True, min_quality="good", min_difficulty="easy")
    assert outcome.kept[0]["tags"] == tags


def test_a_guard_and_an_embedder_of_their_own(template):
    "The guard says no to the second row; the third means the same as the first"
    with model(answer=lambda body: "unsafe\nS9" if TOPICS[1] in str(body) else "safe") as (guard, _), model() as (reference, bodies), \
         serve(lambda body, n: (200, {"data": [{"embedding": [1.0, 0.01] if TOPICS[2] in body["input"] or TOPICS[0] in body["input"] else [0.0, 1.0] if TOPICS[1] in body["input"] else [-1.0, 0.0]}]})) as (embedder, inputs):
        outcome = made({"default": reference, "guard": guard, "embedder": embedder}, template, rows=list(seeds(4)))
    assert [r["reason"] for r in outcome.dropped] == ["unsafe (S9)", "instruction: means the same as magpie-000000 (1.00)"]
    assert len(inputs) == 4 and outcome.kept[0]["safety"] == {"safe": True, "hazards": []} and outcome.kept[1]["nearest"]


def test_a_responder_that_takes_no_system_message(template):
    "It is folded into the user's turn, once the server has refused it; the rows show the request alone"
    def answer(body):
        if body["messages"][0]["role"] == "system": return 400, {"error": {"message": "System role not supported"}}
        assert body["messages"][0]["content"].startswith(pack("it")["magpie"]["answer"])
        return "Ecco una spiegazione semplice, con un esempio preso dalla vita di tutti i giorni."
    with model(answer=answer) as (reference, bodies): outcome = made(reference, template, rows=list(seeds(5)), concurrency=1)
    assert len(outcome.kept) == 5 and sum(b["messages"][0]["role"] == "system" for b in bodies if "messages" in b) == 1
    assert outcome.kept[4]["messages"][0]["content"] == request(4)


def test_ollama_goes_raw(template, monkeypatch):
    "The prompt goes to /api/generate with raw, and the sampling in its options"
    def answer(body, n):
        if body.path == "/v1/chat/completions": return "Ecco una spiegazione semplice, con un esempio preso dalla vita di tutti i giorni."
        if body.path != "/api/generate": return 404, {}
        return 200, {"response": "b" if body["prompt"] == "a" else request(body["options"]["seed"]), "done_reason": "stop", "prompt_eval_count": 1, "eval_count": 9}
    with serve(answer, models=("m:latest",)) as (reference, bodies):
        monkeypatch.setenv("OLLAMA_HOST", reference.split("/v1")[0])
        outcome = made("ollama:m", template, until=3)
    raw = [b for b in bodies if b.path == "/api/generate"]
    assert len(outcome.kept) == 3 and all(b["raw"] is True and b["stream"] is False and b["model"] == "m" for b in raw)
    assert {b["options"]["seed"] for b in raw if b["prompt"] != "a"} == {0, 1, 2} and raw[-1]["options"]["num_predict"] == 500 and raw[-1]["options"]["stop"] == ["<|im_end|>", "<|im_start|>", "\nRisposta:", "\nAnswer:"]


def test_bias_makes_english_beginnings_less_likely(template):
    def answer(body, n):
        if body.path == "/tokenize": return 200, {"tokens": [sum(map(ord, body["content"])), 7]}
        return wrote("b" if body["prompt"] == "a" else request(body["seed"]))
    with serve(answer) as (reference, bodies): outcome = made(reference, template, instruct, steering="system+bias", rows=list(seeds(3)))
    sent = [b["logit_bias"] for b in bodies if b.get("prompt", "a") != "a" and b.path.endswith("completions")]
    assert len(sent) == 3 and sent[0][str(sum(map(ord, "What")))] == -5.0 and len(sent[0]) > 30 and outcome.kept[0]["user_turns"][0]["logit_bias"] == len(sent[0])
    with model() as (reference, bodies), pytest.raises(EndpointError, match="has no /tokenize"): made(reference, template, instruct, steering="bias", rows=list(seeds(1)))


def test_compare_steering_counts(template):
    "A model that follows the word and not the system message"
    def answer(body, n):
        if body["prompt"] == "a": return wrote("b")
        return wrote(request(body["seed"]) if body["prompt"].endswith("italian:") and body["seed"] != 3 else f"What is the {body['seed']}th prime number, and how do you find it?")
    with serve(answer) as (reference, bodies): word, *others = compare_steering(reference, ["Italian"], ("plain", "system", "word"), rows=6, store=":memory:", template=template)
    assert (word["steering"], word["in_language"]["value"], word["kept"]["value"]) == ("word", 5 / 6, 5 / 6) and word["kept"]["low"] < 0.6 and word["tokens"] > 0
    assert [(o["kept"]["value"], o["tokens"]) for o in others] == [(0, None)] * 2 and word["examples"][0] == request(0)


@pytest.mark.parametrize("raw, language, instruction", [
    ("Scrivi una poesia.\n\nassistant\nEcco", "it", "Scrivi una poesia."), ("Scrivi una poesia.<|im_end|>", "it", "Scrivi una poesia."), ('Dove sei?\n\nAssistant"Sono qui."', "it", "Dove sei?"), ("1) Che ora è?\n2) Che giorno è?", "it", "Che ora è?"),
    ("Aufgabe: Berechne 3 mal 4.\nAntwort: 12", "de", "Berechne 3 mal 4."), ("質問：日本の首都はどこですか？\n回答：東京", "ja", "日本の首都はどこですか？"), ("### Pregunta: ¿Qué hora es?", "es", "¿Qué hora es?"),
    ("**Spiega la gravità.**", "it", "Spiega la gravità."), ("Confronta:\n1. il mare\n2. la montagna", "it", "Confronta:\n1. il mare\n2. la montagna"), ("Wie heißt der Assistant in Word?", "de", "Wie heißt der Assistant in Word?"),
    ("Schreibe eine User Story: Ein Nutzer will sich anmelden.", "de", "Schreibe eine User Story: Ein Nutzer will sich anmelden."), ("", "it", ""), ("1.", "it", "1."), ("Scrivi una funzione che inverte una parola.\nInput: ciao\nOutput: oaic\nNon usare lo slicing.", "it", "Scrivi una funzione che inverte una parola.\nInput: ciao\nOutput: oaic\nNon usare lo slicing."),
    ("Übersetze ins Englische.\nDeutsch: Guten Morgen", "de", "Übersetze ins Englische.\nDeutsch: Guten Morgen"), ("Spiega:\nconst {\n  user\n} = props;", "it", "Spiega:\nconst {\n  user\n} = props;"),
    ("Correggi:\nuser: admin\nModel: X", "it", "Correggi:\nuser: admin\nModel: X"), ("1. Mai: Was feiert man da?", "de", "1. Mai: Was feiert man da?"), ("1. Crea un piano.\n- sono vegetariano\n- ho poco tempo", "it", "1. Crea un piano.\n- sono vegetariano\n- ho poco tempo"),
    ("Problem: Mein Drucker druckt nicht.\nFrage: Was kann ich tun?", "de", "Mein Drucker druckt nicht.\nFrage: Was kann ich tun?"), ("Spiega <s>old</s> new in HTML", "it", "Spiega <s>old</s> new in HTML"),
    ("Was bedeutet diese Antwort: 42?", "de", "Was bedeutet diese Antwort: 42?"), ("Traduci in inglese:\nEnglish is easy", "it", "Traduci in inglese:\nEnglish is easy")])
def test_sanitise(raw, language, instruction): assert sanitise(raw, language)[0] == instruction


@pytest.mark.parametrize("text, language", [("Come posso aiutare mia nonna con il computer?", "it"), ("Wie kann ich dir Fehler melden?", "de"), ("Certo, ma quanto costa?", "it"), ("Puoi aiutarmi?", "it"),
    ("Purtroppo non riesco a dormire da settimane. Che cosa posso fare?", "it"), ("Leider kann ich nachts nicht schlafen. Was hilft dagegen?", "de"), ("¿Cómo puedo ayudarle a mi madre con el móvil?", "es"), ("Meine Eltern werden alt. Wie kann ich ihnen helfen?", "de"),
    ("有什么可以帮助缓解头痛的食物？", "zh"), ("Quanto fa 12 × 45?", "it"), ("Mia nonna vive da sola. Come posso aiutarla a stare meglio?", "it")])
def test_a_user_may_say_that(text, language): assert not assistant_voice(text) and not instruction_problem(text, language)
