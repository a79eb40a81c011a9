// The dialog that shows a request as code.

import { abbreviated } from "/page/request.js";

const dialog = document.getElementById("code-dialog");
const copy = document.getElementById("copy");
let whole = "";

copy.addEventListener("click", async () => {
  const isCopied = await navigator.clipboard?.writeText(whole).then(() => true, () => false);
  copy.textContent = isCopied || copiedFromField() ? "Copied" : "The browser refuses";
});
document.getElementById("code-close").addEventListener("click", () => dialog.close());

/** Copy where there is no clipboard: over plain http from another machine. */
function copiedFromField() {
  const field = document.createElement("textarea");
  field.value = whole;
  field.readOnly = true;
  dialog.append(field); // outside of it nothing can be selected
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  copy.focus();
  return isCopied;
}

/** Show code; what is copied is whole. */
export function showCode(title, code) {
  whole = code;
  const short = abbreviated(code);
  document.getElementById("code-title").textContent = title;
  document.getElementById("code").textContent = short;
  document.getElementById("code-note").textContent =
    short === code ? "" : "Pictures are cut here; Copy takes them whole.";
  copy.textContent = "Copy";
  dialog.showModal();
}
