// The conversation so far, in the form of the API.

export class Conversation {
  #turns = [];

  /** Return the messages of all turns and of a further prompt. */
  messages(system, prompt, images) {
    const messages = this.#turns.flatMap((turn) => [
      { role: "user", content: content(turn.prompt, turn.images) },
      { role: "assistant", content: turn.completion },
    ]);
    if (system) messages.unshift({ role: "system", content: system });
    messages.push({ role: "user", content: content(prompt, images) });
    return messages;
  }

  /** Add a turn. */
  add(prompt, images, completion) {
    this.#turns.push({ prompt, images, completion });
  }

  /** The last image of the conversation, to which regions refer. */
  get lastImage() {
    return this.#turns.flatMap((turn) => turn.images).at(-1);
  }
}

function content(prompt, images) {
  if (!images.length) return prompt;
  const parts = images.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  if (prompt) parts.push({ type: "text", text: prompt });
  return parts;
}
