// What a JavaScript program does with the gateway; prints one JSON document.
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const request = {
  model: "tiny",
  messages: [{ role: "user", content: "What are you?" }],
  temperature: 0,
  max_tokens: 64,
};

const whole = await client.chat.completions.create(request);

let streamed = "";
for await (const piece of await client.chat.completions.create({ ...request, stream: true })) {
  streamed += piece.choices[0]?.delta?.content ?? "";
}

const embeddings = await client.embeddings.create({ model: "tiny", input: ["one", "two"] });
const models = await client.models.list();
const refused = await client.chat.completions
  .create({ ...request, model: "another" })
  .then(() => null, (error) => ({ status: error.status, code: error.code }));
const bare = await fetch(`${client.baseURL}/models`, {
  headers: { authorization: `Bearer ${client.apiKey}` },
});

// Leaves after the first piece of an answer that would go on for long.
const long = await client.chat.completions.create({
  ...request,
  max_tokens: 100000,
  ignore_eos: true,
  stream: true,
});
for await (const piece of long) {
  long.controller.abort();
  break;
}

console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    streamed,
    embeddings: embeddings.data.map((row) => row.embedding.length),
    models: models.data.map((model) => model.id),
    refused,
    bare: bare.status,
  }),
);
