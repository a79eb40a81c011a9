// The images of the next prompt.

export class Images {
  #tray;
  #images = [];

  constructor(tray) {
    this.#tray = tray;
  }

  /** Add files in their order; resolves to the names of those that are not images. */
  async add(files) {
    const imageFiles = [...files].filter((file) => file.type.startsWith("image/"));
    const images = await Promise.all(imageFiles.map(read));
    this.#images.push(...images);
    this.#show();
    return [...files].filter((file) => !imageFiles.includes(file)).map((file) => file.name);
  }

  /** Remove and return all images. */
  take() {
    return this.#replace([]);
  }

  /** Put images back in front. */
  restore(images) {
    this.#replace([...images, ...this.#images]);
  }

  get length() {
    return this.#images.length;
  }

  #replace(images) {
    const previous = this.#images;
    this.#images = images;
    this.#show();
    return previous;
  }

  #show() {
    this.#tray.hidden = !this.#images.length;
    this.#tray.replaceChildren(...this.#images.map((image) => this.#thumbnail(image)));
  }

  #thumbnail(image) {
    const item = document.createElement("li");
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove ${image.name}`);
    remove.addEventListener("click", () => {
      this.#replace(this.#images.filter((other) => other !== image));
    });
    item.append(imageElement(image), remove);
    return item;
  }
}

/** Return an img element. */
export function imageElement({ url, name }) {
  const element = document.createElement("img");
  element.src = url;
  element.alt = name;
  return element;
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ url: reader.result, name: file.name || "image" });
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}
