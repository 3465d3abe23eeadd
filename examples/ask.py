"""Ask the companion one question, as any program that uses the OpenAI library does.

companion exec -- python examples/ask.py "What are you?"
"""

import sys

import openai

question = " ".join(sys.argv[1:]) or "What are you?"
client = openai.OpenAI()  # address and key come from `companion exec`
model = client.models.list().data[0].id
answer = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": question}], stream=True
)
for piece in answer:
    if piece.choices:
        print(piece.choices[0].delta.content or "", end="", flush=True)
print()
