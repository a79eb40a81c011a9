// A completion on the page: its text, its timing, its regions, or its error.

import { imageWithRegions } from "./regions.js";

export class Completion {
  #text;
  #footer;
  #started = performance.now();
  #firstToken;

  constructor(element) {
    this.element = element;
    this.#text = div("text");
    this.#footer = div("footer");
    element.append(this.#text, this.#footer);
    element.setAttribute("aria-busy", "true");
    this.regions = [];
  }

  get text() {
    return this.#text.textContent;
  }

  /** Append a chunk of the stream. The text is never interpreted as HTML. */
  append(chunk) {
    const choice = chunk.choices[0];
    if (choice?.delta.content) {
      this.#firstToken ??= performance.now();
      this.#text.append(choice.delta.content);
    }
    if (choice?.regions) this.regions = choice.regions;
    if (choice?.finish_reason === "length") this.note = "cut at the maximum number of tokens";
    if (chunk.usage) this.usage = chunk.usage;
    for (const warning of chunk.warnings ?? []) this.#addLine(warning, "warning");
  }

  /** Draw the regions over an image. */
  drawRegions(image) {
    if (image && this.regions.length) this.#text.after(imageWithRegions(image, this.regions));
  }

  /** Show the token count and the timing. */
  finish() {
    const facts = [];
    const tokens = this.usage?.completion_tokens;
    if (tokens !== undefined) facts.push(tokens === 1 ? "1 token" : `${tokens} tokens`);
    if (tokens > 1 && this.#firstToken) {
      const seconds = (performance.now() - this.#firstToken) / 1000;
      facts.push(`${rounded((tokens - 1) / Math.max(seconds, 1e-3))} tokens/s`);
    }
    if (this.#firstToken) facts.push(`first token after ${Math.round(this.#firstToken - this.#started)} ms`);
    if (this.note) facts.push(this.note);
    const timing = document.createElement("span");
    timing.className = "timing";
    timing.textContent = facts.join(" · ");
    this.#footer.prepend(timing);
    this.element.removeAttribute("aria-busy");
  }

  /** Show an error. */
  fail(message) {
    this.#addLine(message, "error");
  }

  /** Add a button. */
  addButton(name, action) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = name;
    button.addEventListener("click", action);
    this.#footer.append(button);
  }

  #addLine(message, kind) {
    const line = div(kind);
    line.textContent = message;
    this.#footer.before(line);
  }
}

function div(name) {
  const element = document.createElement("div");
  element.className = name;
  return element;
}

function rounded(rate) {
  return rate < 10 ? rate.toFixed(1) : Math.round(rate);
}
