// What a node of the pack says, below its widgets: while it works, and after the job has ended.
import { app } from "../../scripts/app.js";

export const TEXT_EVENT = "hyper_sd.text";
const NAME = "hyper_sd_text";
const STYLE = {
  color: "var(--input-text)",
  fontSize: "12px",
  lineHeight: "1.35",
  overflow: "auto",
  overflowWrap: "anywhere",
  userSelect: "text",
  whiteSpace: "pre-wrap",
};
const MARGIN = 10; // pixels that the page leaves free on each side of such an element

/** Returns a node by its id: "7"; within subgraphs "1:7", as a run names it, or "<subgraph's id>:7", as the page keeps outputs. */
function nodeOf(id) {
  const path = String(id).split(":");
  const last = path.pop();
  const enter = (graph, part) => graph?.subgraphs?.get(part) ?? graph?.getNodeById(part)?.subgraph;
  return path.reduce(enter, app.rootGraph ?? app.graph)?.getNodeById(last);
}

/** Returns how many pixels an element takes at a width: the page asks before it draws, and cuts what is higher than told. */
function heightAt(element, width) {
  const copy = element.cloneNode(true);
  Object.assign(copy.style, { position: "absolute", visibility: "hidden", width: `${width}px`, height: "auto" });
  document.body.append(copy);
  const height = copy.offsetHeight;
  copy.remove();
  return height;
}

function addText(node) {
  const element = document.createElement("div");
  element.className = "hyper-sd-text";
  Object.assign(element.style, STYLE);
  element.setAttribute("role", "status");
  let known = {};
  const height = () => {
    const [width, text] = [node.size[0] - 2 * MARGIN, element.textContent];
    if (known.width !== width || known.text !== text) known = { width, text, height: heightAt(element, width) + 2 * MARGIN };
    return known.height;
  };
  const widget = node.addDOMWidget(NAME, NAME, element, {
    serialize: false, // out of what is queued
    hideOnZoom: false,
    getMinHeight: height,
    getMaxHeight: height,
    getValue: () => element.textContent,
    setValue: (text) => (element.textContent = text),
  });
  widget.serialize = false; // out of the saved workflow
  return widget;
}

/** Shows a text on a node, in place of the one before; the node grows where it has to. */
export function showText(node, text) {
  const widget = node.widgets?.find(({ name }) => name === NAME) ?? addText(node);
  if (widget.value === text) return;
  widget.value = text;
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  node.setDirtyCanvas?.(true, true);
}

/** Shows what a running node says. */
export function hearText({ node: id, text }) {
  const node = nodeOf(id);
  if (node?.comfyClass?.startsWith("HyperSD")) showText(node, text);
}

/** Shows the texts among the outputs that the page keeps, of the last run or of one out of the history. */
export function showOutputs(outputs) {
  for (const [id, output] of Object.entries(outputs)) if (output?.text) hearText({ node: id, text: output.text.join("\n") });
}

/** Lets a node's type show the text of its `ui` output. */
export function showsOutput(nodeType) {
  const before = nodeType.prototype.onExecuted;
  nodeType.prototype.onExecuted = function (output) {
    before?.apply(this, arguments);
    if (output?.text) showText(this, output.text.join("\n"));
  };
}
