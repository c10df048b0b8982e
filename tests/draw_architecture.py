"Draw nbs/images/architecture.svg: the floors of the house, and the way of a row and of a call. Run it after a change of FLOORS."
from pathlib import Path
from xml.sax.saxutils import escape

PICTURE = Path(__file__).parents[1] / "nbs" / "images" / "architecture.svg"
TITLE = "The modules of llmdata_nb in twelve floors, and the way of a row and of a call"
WIDTH, FLOOR, GAP = 1040, 58, 8
FLOORS = [  # from the top: name, what it is for, color, modules
    ("Doors", "and the notebooks in nbs/pipelines", "#fde9d9", "parameters doctor cli"),
    ("Many machines", "the same recipes on Ray", "#fde9d9", "shares dedup_at_scale cluster"),
    ("Results", "card, training files, pictures, comparison", "#e8f1e4",
     "export formats tables figures plots judge_plots compare report playground"),
    ("People", "judgements by hand", "#e8f1e4", "annotations people annotate argilla_bridge"),
    ("Recipes", "an async function over one row; one record each", "#dbe9f6",
     "passages generation translate rerank magpie aya backinstruct recipes"),
    ("Judging", "what a judge said, and whether it can be trusted", "#e9e3f3", "verdict agreement marks judge tags"),
    ("Runs", "many rows at once, each kept, dropped or failed", "#dbe9f6", "rowfile show engine run"),
    ("Calls", "ask: paid once, at the pace the endpoint takes", "#f6e6ea",
     "spending room models sandbox templates embedded"),
    ("One request", "where it goes, how it is said, what comes back", "#f6e6ea",
     "options address transport dialect answers structured reach"),
    ("Memory and pace", "what was paid for, and how fast to ask", "#f6e6ea", "store progress limits"),
    ("Rows", "read, chosen, told apart", "#f4f1de", "files messages layouts sources dedup rows choose"),
    ("Texts", "what can be told without a model", "#f4f1de", "languages checks scrub waiting")]
ROWS, CALLS, RECIPE, KEPT = "#f4f1de", "#f6e6ea", "#dbe9f6", "#e8f1e4"


def rectangle(x, y, width, height, fill="#fff"):
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" stroke="#777"/>'


def text(x, y, words, size=12, anchor="middle", weight="normal", fill="#222"):
    style = f'font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" fill="{fill}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>'


def note(x, y, words, anchor="middle"): return text(x, y, words, 11, anchor, fill="#444")


def arrow(*points):
    "A line through `points`, with a tip at its end"
    path = " L ".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path d="M {path}" fill="none" stroke="#444" stroke-width="1.5" marker-end="url(#tip)"/>'


def box(x, y, width, name, words, fill):
    middle = x + width / 2
    return [rectangle(x, y, width, 54, fill), text(middle, y + 24, name, weight="bold"), text(middle, y + 40, words)]


def floor(y, name, purpose, fill, modules):
    "One floor, its modules side by side"
    modules, left = modules.split(), 330
    width = (WIDTH - 40 - left) / len(modules)
    parts = [rectangle(20, y, WIDTH - 40, FLOOR, fill)]
    parts += [text(32, y + 24, name, 15, "start", "bold"), text(32, y + 44, purpose, 10.5, "start", fill="#444")]
    for i, module in enumerate(modules):
        x = left + i * width
        size = 11 if len(modules) > 7 else 12
        parts += [rectangle(x, y + 14, width - 8, 30), text(x + (width - 8) / 2, y + 33, module, size)]
    return parts


def way_of_a_row(y):
    "Loaded, sent through the recipe, and where it ends"
    parts = [*box(20, y, 140, "rows", "load_rows", ROWS), *box(230, y, 160, "recipe(row, ask)", "one row, at its own pace", RECIPE)]
    parts += [*box(470, y, 150, "kept", "the row it returned", KEPT), *box(640, y, 150, "dropped", "a reason", KEPT)]
    parts += box(810, y, 150, "failed", "an error, tried again", KEPT)
    parts += [arrow((160, y + 27), (226, y + 27)), note(193, y + 20, "run"), arrow((390, y + 27), (466, y + 27))]
    parts += [arrow((390, y + 45), (430, y + 45), (430, y + 70), (885, y + 70), (885, y + 56)), arrow((715, y + 70), (715, y + 56))]
    return [*parts, note(900, y + 74, "drop(reason), CallFailed", "start")]


def way_of_a_call(y):
    "Looked up, or sent when budget and limits let it, and stored"
    parts = [*box(230, y, 160, "ask", "the key: what is asked", CALLS), *box(20, y, 140, "store", "answers paid for", ROWS)]
    parts += [*box(470, y, 150, "budget, limits", "wait for a place", CALLS), *box(700, y, 170, "endpoint", "checked before the first", "#fff")]
    parts += [arrow((270, y - 58), (270, y - 2)), note(262, y - 20, "await ask(…)", "end")]
    parts += [arrow((350, y - 2), (350, y - 56)), note(358, y - 20, "Reply, or CallFailed", "start")]
    parts += [arrow((230, y + 20), (164, y + 20)), note(197, y + 14, "known?"), arrow((160, y + 40), (226, y + 40)), note(193, y + 53, "replayed")]
    parts += [arrow((390, y + 20), (466, y + 20)), note(428, y + 14, "new"), arrow((620, y + 20), (696, y + 20)), note(658, y + 14, "sent")]
    parts.append(arrow((785, y + 54), (785, y + 84), (90, y + 84), (90, y + 58)))
    return [*parts, note(440, y + 79, "a whole answer is in the store before its row goes on; a failure is on record and is asked again")]


def draw():
    "The picture, as SVG"
    parts, y = [], 20
    for one in FLOORS:
        parts += floor(y, *one)
        y += FLOOR + GAP
    parts += [text(20, y + 10, "A floor uses those below it, never one above.", 12, "start", fill="#444")]
    parts += [text(20, y + 40, "The way of a row, and of a call in it", 16, "start", "bold")]
    parts += [*way_of_a_row(y + 60), *way_of_a_call(y + 172)]
    height = y + 276
    tip = '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto"><path d="M 0 0 L 10 5 L 0 10 z" fill="#444"/></marker>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="Helvetica, Arial, sans-serif" role="img">'
    return "\n".join([head, f"<title>{TITLE}</title><defs>{tip}</defs>", f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>', *parts, "</svg>", ""])


if __name__ == "__main__": PICTURE.write_text(draw(), encoding="utf-8")
