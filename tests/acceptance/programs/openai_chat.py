"""Asks one chat completion at once and one as a stream, with the `openai` client; prints what came as JSON.

openai_chat.py BASE_URL MODEL
"""

import json
import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=120)
asked = {"model": sys.argv[2], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
whole = client.chat.completions.create(**asked)
pieces = [chunk for chunk in client.chat.completions.create(**asked, stream=True) if chunk.choices]
print(
    json.dumps(
        {
            "role": whole.choices[0].message.role,
            "text": whole.choices[0].message.content,
            "tokens": whole.usage.completion_tokens,
            "chunks": len(pieces),
            "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in pieces),
            "finish": pieces[-1].choices[0].finish_reason,
        }
    )
)
