"Tokens per second of the embedded model with 1, 2, 4 and 8 calls at a time: python bench/embedded_slots.py [WEIGHTS]"
import asyncio
import sys
import time

from aiohttp import ClientSession

from llmdata_nb import embedded
from llmdata_nb.models import Ask, object_schema
from llmdata_nb.store import Store
from llmdata_nb.translate import translation_prompt

TEXTS = ["Explain how tides work.", "Give me three tips for a good night's sleep.", "What is the capital of Australia, and how many people live there?",
         "Write a short poem about the sea at night.", "Why is bread soft when it is fresh?", "Name two rivers in Africa and say where they end."]


async def measure(endpoint, n):
    async with ClientSession() as session:
        ask = Ask({"default": endpoint}, Store(":memory:"), session)
        await ask("Hello", max_tokens=4)
        started = time.monotonic()
        await asyncio.gather(*[ask(translation_prompt(t, "it"), schema=object_schema(translation={"type": "string"}), max_tokens=80, sample=i) for i in range(n) for t in TEXTS])
        return ask.ledger.total("completion_tokens") / (time.monotonic() - started)


if __name__ == "__main__":
    for slots in (1, 2, 4, 8):
        embedded.SLOTS = slots
        embedded._servers.clear()
        print(f"{slots} at a time: {asyncio.run(measure(embedded.serve(*sys.argv[1:2]), 4)):.1f} tokens/s", flush=True)
