// The page: turns user actions into requests, and shows their completions.

import { Completion } from "./completion.js";
import { showCode } from "./code.js";
import { Conversation } from "./conversation.js";
import { askForKey, storedKey } from "./key.js";
import { Images, imageElement } from "./images.js";
import { asCurl, asPython, body } from "./request.js";
import { chunks, fetchApi } from "./stream.js";

const byId = (id) => document.getElementById(id);
const baseUrl = new URL("v1", document.baseURI).href;
const maxBodyBytes = Number(document.querySelector("meta[name=max-body-bytes]").content);
const images = new Images(byId("tray"));
let conversation = new Conversation();
let running = null;
let model = null;

/** Send a request, and ask the user for the key if the server requires one. */
async function fetchWithKey(path, options) {
  for (;;) {
    try {
      return await fetchApi(path, { key: storedKey(), ...options });
    } catch (error) {
      if (error.status !== 401 || !(await askForKey(error.message))) throw error;
    }
  }
}

async function findModel() {
  if (!model) {
    const models = await (await fetchWithKey("v1/models", {})).json();
    model = models.data[0].id;
    byId("model").textContent = model;
    document.title = `${model} · vlcore`;
  }
  return model;
}

async function send() {
  const prompt = byId("prompt").value.trim();
  if (running || (!prompt && !images.length)) return;
  if (!byId("settings").checkValidity()) {
    showSettings(true);
    byId("settings").reportValidity();
    return;
  }
  const sentImages = images.take();
  byId("prompt").value = "";
  fitPromptHeight();
  showNotice("");
  byId("welcome").hidden = true;
  const turn = document.createElement("section");
  turn.className = "turn";
  const completion = new Completion(article("completion", "Completion"));
  turn.append(promptElement(prompt, sentImages), completion.element);
  byId("conversation").append(turn);
  const controller = new AbortController();
  setRunning(controller);
  const current = conversation;
  try {
    await generate(completion, current, prompt, sentImages, controller.signal);
    current.add(prompt, sentImages, completion.text);
    completion.drawRegions(current.lastImage);
  } catch (error) {
    if (controller.signal.aborted) {
      completion.note = "stopped";
      if (completion.text) current.add(prompt, sentImages, completion.text);
    } else {
      completion.fail(error.message);
    }
    if (current === conversation && (!controller.signal.aborted || !completion.text)) {
      restoreInput(prompt, sentImages);
      turn.classList.add("discarded");
    }
  }
  completion.finish();
  if (running === controller) setRunning(null);
  scrollToEnd();
}

async function generate(completion, current, prompt, sentImages, signal) {
  const request = body(
    await findModel(),
    current.messages(byId("system").value.trim(), prompt, sentImages),
    { maxTokens: byId("max-tokens").valueAsNumber, temperature: byId("temperature").valueAsNumber },
  );
  const hasKey = Boolean(storedKey());
  completion.addButton("as curl", () => showCode("As curl", asCurl(baseUrl, request, hasKey)));
  completion.addButton("as Python", () =>
    showCode("As Python", asPython(baseUrl, request, hasKey)),
  );
  scrollToEnd();
  const bytes = new Blob([JSON.stringify(request)]);
  if (bytes.size > maxBodyBytes) {
    throw new Error(
      `The conversation with its images is ${mebibytes(bytes.size)}; the maximum is ` +
        `${mebibytes(maxBodyBytes)} (max_body_bytes). Send fewer or smaller images, or start a ` +
        "new conversation.",
    );
  }
  const response = await fetchWithKey("v1/chat/completions", { body: bytes, signal });
  for await (const chunk of chunks(response)) {
    completion.append(chunk);
    scrollToEnd();
  }
}

function promptElement(prompt, sentImages) {
  const element = article("prompt", "Prompt");
  if (sentImages.length) {
    const row = document.createElement("div");
    row.className = "images";
    row.append(...sentImages.map(imageElement));
    element.append(row);
  }
  if (prompt) {
    const text = document.createElement("div");
    text.className = "text";
    text.textContent = prompt;
    element.append(text);
  }
  return element;
}

function article(kind, label) {
  const element = document.createElement("article");
  element.className = kind;
  element.setAttribute("aria-label", label);
  return element;
}

function restoreInput(prompt, sentImages) {
  images.restore(sentImages);
  byId("prompt").value ||= prompt;
  fitPromptHeight();
}

function setRunning(controller) {
  running = controller;
  byId("stop").hidden = !controller;
  byId("send").hidden = Boolean(controller);
}

function showNotice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function mebibytes(count) {
  return `${(count / 2 ** 20).toFixed(1)} MiB`;
}

/** Stay at the end, unless the user has scrolled up. */
function scrollToEnd() {
  const { scrollHeight, scrollTop, clientHeight } = document.scrollingElement;
  if (scrollHeight - scrollTop - clientHeight < 300) scrollTo(0, scrollHeight);
}

function fitPromptHeight() {
  const field = byId("prompt");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

function showSettings(visible) {
  byId("settings").hidden = !visible;
  byId("show-settings").setAttribute("aria-expanded", String(visible));
}

async function add(files) {
  try {
    const otherNames = await images.add(files);
    showNotice(otherNames.length ? `Not an image: ${otherNames.join(", ")}` : "");
  } catch (error) {
    showNotice(error.message);
  }
  byId("prompt").focus();
}

function hasFiles(event) {
  return event.dataTransfer?.types.includes("Files");
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("settings").addEventListener("submit", (event) => event.preventDefault());
byId("prompt").addEventListener("input", fitPromptHeight);
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("add").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", async () => {
  await add(byId("files").files);
  byId("files").value = "";
});
byId("show-settings").addEventListener("click", () => showSettings(byId("settings").hidden));
byId("new-conversation").addEventListener("click", () => {
  running?.abort();
  setRunning(null);
  conversation = new Conversation();
  images.take();
  showNotice("");
  byId("conversation").replaceChildren();
  byId("welcome").hidden = false;
  byId("prompt").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) running?.abort();
});
document.addEventListener("paste", (event) => {
  if (!event.clipboardData?.files.length) return;
  event.preventDefault();
  add(event.clipboardData.files);
});
document.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  if (!hasFiles(event)) return;
  event.preventDefault();
  add(event.dataTransfer.files);
});

findModel().catch((error) => showNotice(error.message));
