// The key of the API, which this tab alone keeps.

const PLACE = "vlcore-api-key";
const dialog = document.getElementById("key-dialog");
const input = document.getElementById("key");

document.getElementById("key-cancel").addEventListener("click", () => dialog.close(""));
document.getElementById("key-form").addEventListener("submit", () => {
  sessionStorage.setItem(PLACE, input.value);
  dialog.returnValue = "given";
});

/** The key, or null. */
export function storedKey() {
  return sessionStorage.getItem(PLACE);
}

/** Ask for the key; gives whether one was given. */
export function askForKey(reason) {
  document.getElementById("key-reason").textContent = reason;
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given"), { once: true });
  });
}
