// @ts-check
/** Small helpers to make elements. Text is always set as text, never as HTML. */

/**
 * Attributes by name; functions are listeners, under names such as `onclick`, and null is none.
 * @typedef {Record<string, string | number | null | undefined | (() => void)>} Attributes
 * @typedef {Node | string | null | undefined} Child
 */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element: `h("div.name", {title: ".."}, child, "text")`; null is no child.
 * @param {string} name
 * @param {Attributes} attributes
 * @param {...Child} children
 */
export function h(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  return fill(element, attributes, children);
}

/**
 * The same for SVG.
 * @param {string} name
 * @param {Attributes} attributes
 * @param {...Child} children
 */
export function s(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElementNS(SVG, tag);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  return fill(element, attributes, children);
}

/**
 * Make the children of `parent` look like `fresh`. What is there already stays the same element, so
 * that focus, hovering and a click that has begun are not lost. An element with another `data-key`
 * is another one: what it does when it is clicked may differ.
 * @param {Element} parent
 * @param {...(Node | string)} fresh
 */
export function update(parent, ...fresh) {
  const nodes = fresh.map((node) => (typeof node === "string" ? document.createTextNode(node) : node));
  nodes.forEach((node, index) => {
    const old = parent.childNodes[index];
    if (!old) parent.append(node);
    else if (!isSame(old, node)) old.replaceWith(node);
    else if (old instanceof Text && node instanceof Text) {
      if (old.data !== node.data) old.data = node.data;
    } else if (old instanceof Element && node instanceof Element) {
      copyAttributes(old, node);
      update(old, ...node.childNodes);
    }
  });
  while (parent.childNodes.length > nodes.length) parent.lastChild?.remove();
}

/** @param {Node} a @param {Node} b */
const isSame = (a, b) => a.nodeName === b.nodeName && keyOf(a) === keyOf(b);

/** @param {Node} node */
const keyOf = (node) => (node instanceof Element ? node.getAttribute("data-key") : null);

/** @param {Element} to @param {Element} from */
function copyAttributes(to, from) {
  for (const { name } of [...to.attributes]) if (!from.hasAttribute(name)) to.removeAttribute(name);
  for (const { name, value } of from.attributes) {
    if (to.getAttribute(name) !== value) to.setAttribute(name, value);
  }
}

/**
 * An icon of PrimeIcons, which ComfyUI brings.
 * @param {string} name
 */
export const icon = (name) => h(`i.pi.pi-${name}`, { "aria-hidden": "true" });

/**
 * A button with an icon.
 * @param {string} label
 * @param {string} iconName
 * @param {() => void} onclick
 * @param {Attributes} attributes
 */
export function button(label, iconName, onclick, attributes = {}) {
  return h("button.ad-button", { type: "button", onclick, ...attributes }, icon(iconName), label);
}

/**
 * @template {Element} E
 * @param {E} element
 * @param {Attributes} attributes
 * @param {Child[]} children
 */
function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== null) element.setAttribute(key, String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
