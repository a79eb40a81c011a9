// The turns so far, as the server wants them.

export class Conversation {
  #turns = [];

  /** The messages of all turns, and of one more question. */
  messages(system, question, pictures) {
    const messages = this.#turns.flatMap((turn) => [
      { role: "user", content: content(turn.question, turn.pictures) },
      { role: "assistant", content: turn.answer },
    ]);
    if (system) messages.unshift({ role: "system", content: system });
    messages.push({ role: "user", content: content(question, pictures) });
    return messages;
  }

  /** Keep a turn. */
  add(question, pictures, answer) {
    this.#turns.push({ question, pictures, answer });
  }

  /** The last picture that the model was shown: boxes are meant on it. */
  get lastPicture() {
    return this.#turns.flatMap((turn) => turn.pictures).at(-1);
  }
}

function content(question, pictures) {
  if (!pictures.length) return question;
  const parts = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  if (question) parts.push({ type: "text", text: question });
  return parts;
}
