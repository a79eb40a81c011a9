// The dialog that shows a request as code.

import { abbreviated } from "./request.js";

const dialog = document.getElementById("code-dialog");
const copy = document.getElementById("copy");
let fullCode = "";

copy.addEventListener("click", async () => {
  const isCopied = await navigator.clipboard?.writeText(fullCode).then(() => true, () => false);
  copy.textContent = isCopied || copiedFromField() ? "Copied" : "The browser refused to copy";
});
document.getElementById("code-close").addEventListener("click", () => dialog.close());

/** Copy without the clipboard API, which browsers do not offer over plain HTTP from another machine. */
function copiedFromField() {
  const field = document.createElement("textarea");
  field.value = fullCode;
  field.readOnly = true;
  dialog.append(field); // outside of a modal dialog nothing can be selected
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  copy.focus();
  return isCopied;
}

/** Show code with its data URLs abbreviated; Copy copies all of it. */
export function showCode(title, code) {
  fullCode = code;
  const short = abbreviated(code);
  document.getElementById("code-title").textContent = title;
  document.getElementById("code").textContent = short;
  document.getElementById("code-note").textContent =
    short === code ? "" : "Images are abbreviated here; Copy copies all of them.";
  copy.textContent = "Copy";
  dialog.showModal();
}
