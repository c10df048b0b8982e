"Recipes that Ray's workers import."
import asyncio
import os

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


async def impatient(row, ask):
    try: row["said"] = (await asyncio.wait_for(ask(f"Say {row['id']}", step="say", max_tokens=20), 1.5)).text
    except TimeoutError: row["said"] = "too late"
    except CallFailed: row["said"] = "no money"
    return row
