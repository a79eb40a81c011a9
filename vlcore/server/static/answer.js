// An answer on the page: its text, its times, its boxes, or what went wrong.

import { pointed } from "/page/boxes.js";

export class Answer {
  #text;
  #foot;
  #asked = performance.now();
  #first;

  constructor(element) {
    this.element = element;
    this.#text = part("text");
    this.#foot = part("foot");
    element.append(this.#text, this.#foot);
    element.setAttribute("aria-busy", "true");
    this.regions = [];
  }

  get text() {
    return this.#text.textContent;
  }

  /** Take a chunk of the stream. Text stays text, whatever it looks like. */
  take(chunk) {
    const choice = chunk.choices[0];
    if (choice?.delta.content) {
      this.#first ??= performance.now();
      this.#text.append(choice.delta.content);
    }
    if (choice?.regions) this.regions = choice.regions;
    if (choice?.finish_reason === "length") this.note = "cut at the most tokens of an answer";
    if (chunk.usage) this.usage = chunk.usage;
    for (const warning of chunk.warnings ?? []) this.#say(warning, "warning");
  }

  /** Draw the boxes. */
  point(picture) {
    if (picture && this.regions.length) this.#text.after(pointed(picture, this.regions));
  }

  /** Say how long it took. */
  end() {
    const facts = [];
    const tokens = this.usage?.completion_tokens;
    if (tokens !== undefined) facts.push(tokens === 1 ? "1 token" : `${tokens} tokens`);
    if (tokens > 1 && this.#first) {
      const seconds = (performance.now() - this.#first) / 1000;
      facts.push(`${rounded((tokens - 1) / Math.max(seconds, 1e-3))} tokens/s`);
    }
    if (this.#first) facts.push(`first token after ${Math.round(this.#first - this.#asked)} ms`);
    if (this.note) facts.push(this.note);
    const times = document.createElement("span");
    times.className = "times";
    times.textContent = facts.join(" · ");
    this.#foot.prepend(times);
    this.element.removeAttribute("aria-busy");
  }

  /** Say what went wrong. */
  fail(message) {
    this.#say(message, "error");
  }

  /** Offer something to do. */
  offer(name, action) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = name;
    button.addEventListener("click", action);
    this.#foot.append(button);
  }

  #say(message, kind) {
    const line = part(kind);
    line.textContent = message;
    this.#foot.before(line);
  }
}

function part(name) {
  const element = document.createElement("div");
  element.className = name;
  return element;
}

function rounded(rate) {
  return rate < 10 ? rate.toFixed(1) : Math.round(rate);
}
