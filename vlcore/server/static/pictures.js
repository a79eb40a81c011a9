// The pictures that go with the next question.

export class Pictures {
  #tray;
  #pictures = [];

  constructor(tray) {
    this.#tray = tray;
  }

  /** Take files in their order; gives the names of those that are no pictures. */
  async add(files) {
    const wanted = [...files].filter((file) => file.type.startsWith("image/"));
    const pictures = await Promise.all(wanted.map(read));
    this.#pictures.push(...pictures);
    this.#show();
    return [...files].filter((file) => !wanted.includes(file)).map((file) => file.name);
  }

  /** Give the pictures away; the tray is empty then. */
  take() {
    return this.#replace([]);
  }

  /** Put pictures back. */
  restore(pictures) {
    this.#replace([...pictures, ...this.#pictures]);
  }

  get length() {
    return this.#pictures.length;
  }

  #replace(pictures) {
    const before = this.#pictures;
    this.#pictures = pictures;
    this.#show();
    return before;
  }

  #show() {
    this.#tray.hidden = !this.#pictures.length;
    this.#tray.replaceChildren(...this.#pictures.map((picture) => this.#thumbnail(picture)));
  }

  #thumbnail(picture) {
    const item = document.createElement("li");
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove ${picture.name}`);
    remove.addEventListener("click", () => {
      this.#replace(this.#pictures.filter((other) => other !== picture));
    });
    item.append(image(picture), remove);
    return item;
  }
}

/** Show a picture. */
export function image({ url, name }) {
  const element = document.createElement("img");
  element.src = url;
  element.alt = name;
  return element;
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ url: reader.result, name: file.name || "picture" });
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}
