"""What one would write in ten lines: a loop around the model, one request after the other.

Runs in the engine's interpreter: python embedding_loop.py MODEL PORT
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web
from sentence_transformers import SentenceTransformer


def main() -> None:
    model = SentenceTransformer(sys.argv[1], device="cpu")
    one = ThreadPoolExecutor(1)

    async def embeddings(request: web.Request) -> web.Response:
        asked = await request.json()
        texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(one, lambda: model.encode(texts, show_progress_bar=False))
        data = [
            {"object": "embedding", "index": index, "embedding": vector.tolist()}
            for index, vector in enumerate(vectors)
        ]
        return web.json_response({"object": "list", "data": data, "model": asked["model"]})

    app = web.Application()
    app.router.add_post("/v1/embeddings", embeddings)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), print=None, access_log=None)


main()
