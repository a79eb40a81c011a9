// The regions of a completion, drawn over an image.

import { imageElement } from "./images.js";

/** Return a figure of an image with regions: a label, and a box of left, top, right and bottom as fractions. */
export function imageWithRegions(image, regions) {
  const figure = document.createElement("figure");
  figure.className = "regions";
  figure.append(imageElement(image), ...regions.map(box));
  return figure;
}

function box({ label, box: [left, top, right, bottom] }, index) {
  const frame = document.createElement("div");
  frame.className = `box hue-${index % 4}`;
  frame.style.left = `${100 * left}%`;
  frame.style.top = `${100 * top}%`;
  frame.style.width = `${100 * (right - left)}%`;
  frame.style.height = `${100 * (bottom - top)}%`;
  if (label) {
    const name = document.createElement("span");
    name.textContent = label;
    frame.append(name);
  }
  return frame;
}
