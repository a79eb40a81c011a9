// The page: from what a person does to a request, and from its answer to what is seen.

import { Answer } from "/page/answer.js";
import { showCode } from "/page/code.js";
import { Conversation } from "/page/conversation.js";
import { askForKey, storedKey } from "/page/key.js";
import { Pictures, image } from "/page/pictures.js";
import { asCurl, asPython, body } from "/page/request.js";
import { ask, chunks } from "/page/stream.js";

const at = (id) => document.getElementById(id);
const maxBodyBytes = Number(document.querySelector("meta[name=max-body-bytes]").content);
const pictures = new Pictures(at("tray"));
let conversation = new Conversation();
let running = null;
let model = null;

/** Ask the server, and for the key where it wants one. */
async function askWithKey(path, options) {
  for (;;) {
    try {
      return await ask(path, { key: storedKey(), ...options });
    } catch (error) {
      if (error.status !== 401 || !(await askForKey(error.message))) throw error;
    }
  }
}

async function findModel() {
  if (!model) {
    const listed = await (await askWithKey("/v1/models", {})).json();
    model = listed.data[0].id;
    at("model").textContent = model;
    document.title = `${model} · vlcore`;
  }
  return model;
}

async function send() {
  const question = at("question").value.trim();
  if (running || (!question && !pictures.length)) return;
  if (!at("settings").checkValidity()) {
    showSettings(true);
    at("settings").reportValidity();
    return;
  }
  const shown = pictures.take();
  at("question").value = "";
  fit();
  notice("");
  at("welcome").hidden = true;
  const turn = document.createElement("section");
  turn.className = "turn";
  const answer = new Answer(article("answer", "Answer"));
  turn.append(asked(question, shown), answer.element);
  at("conversation").append(turn);
  const controller = new AbortController();
  setRunning(controller);
  const current = conversation;
  try {
    await fill(answer, current, question, shown, controller.signal);
    current.add(question, shown, answer.text);
    answer.point(current.lastPicture);
  } catch (error) {
    if (controller.signal.aborted) {
      answer.note = "stopped";
      if (answer.text) current.add(question, shown, answer.text);
    } else {
      answer.fail(error.message);
    }
    if (current === conversation && (!controller.signal.aborted || !answer.text)) {
      putBack(question, shown);
      turn.classList.add("forgotten");
    }
  }
  answer.end();
  if (running === controller) setRunning(null);
  follow();
}

async function fill(answer, current, question, shown, signal) {
  const request = body(
    await findModel(),
    current.messages(at("system").value.trim(), question, shown),
    { maxTokens: at("max-tokens").valueAsNumber, temperature: at("temperature").valueAsNumber },
  );
  const hasKey = Boolean(storedKey());
  answer.offer("as curl", () => showCode("As curl", asCurl(location.origin, request, hasKey)));
  answer.offer("as Python", () =>
    showCode("As Python", asPython(location.origin, request, hasKey)),
  );
  follow();
  const bytes = new Blob([JSON.stringify(request)]);
  if (bytes.size > maxBodyBytes) {
    throw new Error(
      `The conversation with its pictures is ${mebibytes(bytes.size)}; this server takes ` +
        `${mebibytes(maxBodyBytes)} (max_body_bytes). Send fewer or smaller pictures, or begin a ` +
        "new conversation.",
    );
  }
  const response = await askWithKey("/v1/chat/completions", { body: bytes, signal });
  for await (const chunk of chunks(response)) {
    answer.take(chunk);
    follow();
  }
}

function asked(question, shown) {
  const element = article("question", "Question");
  if (shown.length) {
    const row = document.createElement("div");
    row.className = "pictures";
    row.append(...shown.map(image));
    element.append(row);
  }
  if (question) {
    const text = document.createElement("div");
    text.className = "text";
    text.textContent = question;
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

function putBack(question, shown) {
  pictures.restore(shown);
  at("question").value ||= question;
  fit();
}

function setRunning(controller) {
  running = controller;
  at("stop").hidden = !controller;
  at("send").hidden = Boolean(controller);
}

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

function mebibytes(count) {
  return `${(count / 2 ** 20).toFixed(1)} MiB`;
}

/** Stay at the end, unless somebody reads further up. */
function follow() {
  const { scrollHeight, scrollTop, clientHeight } = document.scrollingElement;
  if (scrollHeight - scrollTop - clientHeight < 300) scrollTo(0, scrollHeight);
}

function fit() {
  const field = at("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

function showSettings(visible) {
  at("settings").hidden = !visible;
  at("show-settings").setAttribute("aria-expanded", String(visible));
}

async function add(files) {
  try {
    const others = await pictures.add(files);
    notice(others.length ? `Not a picture: ${others.join(", ")}` : "");
  } catch (error) {
    notice(error.message);
  }
  at("question").focus();
}

function hasFiles(event) {
  return event.dataTransfer?.types.includes("Files");
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("settings").addEventListener("submit", (event) => event.preventDefault());
at("question").addEventListener("input", fit);
at("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
at("stop").addEventListener("click", () => running?.abort());
at("add").addEventListener("click", () => at("files").click());
at("files").addEventListener("change", async () => {
  await add(at("files").files);
  at("files").value = "";
});
at("show-settings").addEventListener("click", () => showSettings(at("settings").hidden));
at("renew").addEventListener("click", () => {
  running?.abort();
  setRunning(null);
  conversation = new Conversation();
  pictures.take();
  notice("");
  at("conversation").replaceChildren();
  at("welcome").hidden = false;
  at("question").focus();
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

findModel().catch((error) => notice(error.message));
