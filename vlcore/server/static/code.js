// The dialog that shows a request as code.

import { abbreviated } from "/page/request.js";

const dialog = document.getElementById("code-dialog");
const copy = document.getElementById("copy");
let whole = "";

copy.addEventListener("click", async () => {
  await navigator.clipboard.writeText(whole);
  copy.textContent = "Copied";
});
document.getElementById("code-close").addEventListener("click", () => dialog.close());

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
