// Boxes over a picture, where an answer points.

import { image } from "/page/pictures.js";

/** Show a picture with regions: a label and a box of fractions, left, top, right and bottom. */
export function pointed(picture, regions) {
  const figure = document.createElement("figure");
  figure.className = "pointed";
  figure.append(image(picture), ...regions.map(box));
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
