// Requests that OpenAI's JavaScript client sends, in Node.js and in a browser.
import OpenAI from "openai";

/** Send requests to a server and return their outcomes. */
export async function outcomes({ baseURL, apiKey, image }) {
  const options = { baseURL, maxRetries: 0, dangerouslyAllowBrowser: true };
  const client = new OpenAI({ ...options, apiKey });
  const stranger = new OpenAI({ ...options, apiKey: "wrong" });
  const question = (text) => ({
    model: "tiny",
    temperature: 0,
    messages: [
      {
        role: "user",
        content: [
          { type: "image_url", image_url: { url: image } },
          { type: "text", text },
        ],
      },
    ],
  });
  const error = async (request) => {
    try {
      await request;
    } catch (raised) {
      return [raised.constructor.name, raised.status, raised.code];
    }
    return null;
  };

  const whole = await client.chat.completions.create(question("What colour is the circle?"));
  const deltas = [];
  const stream = await client.chat.completions.create({
    ...question("Describe the picture."),
    stream: true,
    stream_options: { include_usage: true },
  });
  let usage = null;
  for await (const chunk of stream) {
    deltas.push(chunk.choices[0]?.delta.content ?? "");
    usage = chunk.usage ?? usage;
  }
  const aborted = await client.chat.completions.create({
    ...question("Describe the picture."),
    stream: true,
  });
  for await (const _ of aborted) {
    aborted.controller.abort();
  }
  const models = [];
  for await (const model of client.models.list()) {
    models.push(model.id);
  }
  return {
    text: whole.choices[0].message.content,
    streamed: deltas.join(""),
    imageTokens: usage.prompt_tokens_details.image_tokens,
    models,
    wrongKey: await error(stranger.models.list()),
    wrongModel: await error(
      client.chat.completions.create({ ...question("Hi"), model: "another" }),
    ),
    wrongImage: await error(
      client.chat.completions.create({
        model: "tiny",
        messages: [
          { role: "user", content: [{ type: "image_url", image_url: { url: "data:,x" } }] },
        ],
      }),
    ),
    afterAbort: aborted.controller.signal.aborted,
  };
}
