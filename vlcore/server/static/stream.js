// The chunks of a streamed answer.

/** An answer that the server refused, or broke off. */
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Send a request; gives the response, or throws what the server said against it. */
export async function ask(path, { key, body, signal }) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body, signal });
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`.trim();
  try {
    message = (await response.json()).error.message;
  } catch {
    // Something between here and the server answered in its own words.
  }
  throw new ServerError(message, response.status);
}

/** Iterate over the JSON values of server-sent events, to the end that the server states. */
export async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ServerError("The connection ended in the midst of the answer.", 0);
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data:")) continue;
      const data = event.slice(5).trim();
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(chunk.error.message, 0);
      yield chunk;
    }
  }
}
