// The API key, which is stored for this tab alone.

const STORAGE_KEY = "vlcore-api-key";
const dialog = document.getElementById("key-dialog");
const input = document.getElementById("key");

document.getElementById("key-cancel").addEventListener("click", () => dialog.close(""));
document.getElementById("key-form").addEventListener("submit", () => {
  sessionStorage.setItem(STORAGE_KEY, input.value);
  dialog.returnValue = "entered";
});

/** Return the stored key, or null. */
export function storedKey() {
  return sessionStorage.getItem(STORAGE_KEY);
}

/** Ask for the key; resolves to whether one was entered. */
export function askForKey(reason) {
  document.getElementById("key-reason").textContent = reason;
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "entered"), { once: true });
  });
}
