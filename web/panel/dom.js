/** Small helpers to make elements. Text is always set as text, never as HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** An element: `h("div.name", {title: ".."}, child, "text")`. */
export function h(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  return fill(element, attributes, children);
}

/** The same for SVG. */
export function s(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElementNS(SVG, tag);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  return fill(element, attributes, children);
}

/** An icon of PrimeIcons, which ComfyUI brings. */
export const icon = (name) => h(`i.pi.pi-${name}`, { "aria-hidden": "true" });

/** A button with an icon. */
export function button(label, iconName, onclick, attributes = {}) {
  return h("button.ad-button", { type: "button", onclick, ...attributes }, icon(iconName), label);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
