"Recipes that Ray's workers import."
import asyncio
import os
from pathlib import Path

from llmdata_nb.models import CallFailed
from llmdata_nb.run import drop


async def two_calls(row, ask, word="x"):
    row["answer"] = (await ask(f"Write {word} {row['id']}", step="write", max_tokens=20)).text
    if row["id"].endswith("9"): drop("an id that ends in nine")
    row["opinion"] = (await ask(f"Judge {row['answer']} {row['id']}", step="judge", max_tokens=20)).text
    return row


async def deadly(row, ask, word="death"):
    if row["id"] == "000030" and word == "death": os._exit(1)
    return await two_calls(row, ask, word)


async def impatient(row, ask, folder):
    "Of the rows that wait for the budget while the first call is under way, those with an even number give up, and say so in `folder`"
    call = asyncio.ensure_future(ask(f"Say {row['id']}", step="say", max_tokens=20))
    first, gave_up = Path(folder, "first"), Path(folder, "gave_up", row["id"])
    while int(row["id"]) % 2 == 0 and not call.done():
        if first.exists() and first.read_text() != row["id"]:
            call.cancel()
            await asyncio.wait([call])
            gave_up.touch()
            return row | {"said": "nothing"}
        await asyncio.sleep(0.02)
    try: row["said"] = (await asyncio.wait_for(call, 120)).text
    except TimeoutError: row["said"] = "too late"
    except CallFailed: row["said"] = "no money"
    return row
